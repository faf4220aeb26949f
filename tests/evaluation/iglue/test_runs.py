"""What a run's folder holds twice: the newest counts where the test or model has changed, else it is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.cli import main
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.result import Result
from cclm.evaluation.runs import read_run, read_runs, superseded

PROVENANCE: dict[str, Any] = {"texts_sha256": "a" * 64, "model_sha256": "b" * 64, "settings": {"rerank": 0, "p": [1]}}
OLD = Result(*("xvnli", "fr", "official", 1164, {"accuracy": 40.0}, "0" * 64), system="ours", provenance=PROVENANCE)


def stored(folder: Path, *results: Result) -> Path:
    """Each newer than the one before, under names in the other order."""
    (folder / "cells").mkdir(parents=True)
    for number, result in enumerate(results):
        path = folder / "cells" / f"xvnli-fr-{9 - number}.json"
        path.write_text(json.dumps(result.to_dict()))
        os.utime(path, (1e9 + number, 1e9 + number))
    return folder


def newer(**provenance: Any) -> Result:
    return replace(OLD, scores={"accuracy": 60.0}, provenance=PROVENANCE | provenance)


@pytest.mark.parametrize(
    ("new", "changed"),
    [
        (newer(texts_sha256="c" * 64), "texts"),
        (newer(model_sha256="c" * 64), "model"),
        (replace(newer(texts_sha256="c" * 64), ids="1" * 64), "ids, texts"),
        (replace(newer(), notes=(StandIns.note,)), "pictures"),
        (newer(settings={"p": [1]}, texts_sha256="c" * 64), "texts"),  # what is off need not be said
        (newer(), "pictures"),  # the only thing that a cell's name depends on besides
    ],
)
def test_the_newest_of_a_cell_counts_and_the_older_is_named(
    new: Result, changed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored(tmp_path / "run", OLD, new)
    assert [one.result for one in read_run(run)] == [new]
    old = run / "cells" / "xvnli-fr-9.json"
    assert list(superseded(read_runs([run, run]))) == [(changed, [old])]
    line = f"superseded, left out: older results of other {changed}: {old}"
    main(["iglue", "report", str(run), "--output", str(tmp_path / "out"), "--format", "markdown,json"])
    assert line in capsys.readouterr().out.splitlines()
    assert line.replace("_", "\\_") in (tmp_path / "out" / "report.md").read_text().splitlines()
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["superseded"] == [{"changed": changed, "files": [str(old)]}]
    assert [row["accuracy"] for row in content["results"]] == [60.0]


@pytest.mark.parametrize(
    ("provenance", "told"),
    [
        ({"settings": {"rerank": 64, "p": [1]}, "texts_sha256": "c" * 64}, "rerank (none and 64)"),
        ({"settings": {"rerank": 0, "p": [2]}}, "p ([1] and [2])"),
        ({"training": {"rate": 1e-4, "seconds": 3.0}}, "training rate (none and 0.0001)"),
    ],
)
def test_cells_of_other_settings_are_refused_by_name(
    provenance: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored(tmp_path / "run", OLD, newer(**provenance))
    for arguments in ([str(run)], [str(stored(tmp_path / "one", OLD)), "--compare", str(run), str(run)]):
        with pytest.raises(SystemExit):
            main(["iglue", "report", *arguments])
        error = capsys.readouterr().err
        assert f"differ in {told}; evaluate one with another --system, or remove one" in error
        assert "xvnli-fr-9.json and " in error and "xvnli-fr-8.json are of one cell, ours xvnli fr" in error
        assert error.count("\n") == 1


def test_how_a_training_went_is_no_setting(tmp_path: Path) -> None:
    english = {"rate": 1e-5, "steps": 9}
    first, second = (
        {"rate": rate, "seconds": 1e5 * rate, "rates": {"1e-4": 1e6 * rate, "2e-4": 50.0}, "english": english}
        for rate in (1e-4, 2e-4)
    )
    old = replace(OLD, provenance=PROVENANCE | {"training": first})
    new = newer(training=second, texts_sha256="c" * 64)
    assert [one.result for one in read_run(stored(tmp_path / "run", old, new))] == [new]
    for changes, told in (
        ({"rates": {"1e-4": 40.0}}, "training rates"),
        ({"english": english | {"steps": 5}}, "English training steps"),
    ):
        run = stored(tmp_path / told, old, newer(training=second | changes))
        with pytest.raises(ValueError, match=f"differ in {told} "):
            read_run(run)


def test_a_damaged_cell_is_to_be_removed(tmp_path: Path) -> None:
    run = stored(tmp_path, OLD)
    (run / "cells" / "xvnli-fr-9.json").write_text('{"task": "xvn')
    with pytest.raises(ValueError, match=r"xvnli-fr-9.json is damaged .*; remove it, and `evaluate` makes it again"):
        read_run(run)
