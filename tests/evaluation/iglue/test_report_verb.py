"""`cclm iglue report` on runs as `evaluate` leaves them, on real tests of the benchmarks where these matter."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cclm.cli import main
from cclm.evaluation.cells import RunFolder
from cclm.evaluation.number import AVERAGE, cell
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.published import published
from cclm.evaluation.result import Result
from cclm.evaluation.scoring import ScoreOptions, score_answers, score_embeddings
from cclm.evaluation.survey import Survey, View
from cclm.evaluation.tables import escaped, latex, markdown, tables
from cclm.evaluation.task import DataFolder, find

HASH = "0123456789abcdef" * 4


def as_runs(task: str, system: str, name: str, notes: tuple[str, ...] = ()) -> list[Result]:
    """An official system's numbers as if we had measured them."""
    found: dict[tuple[str, str, str], dict] = {}
    for number in published(system=system, task=task, protocol="official"):
        if number.language != AVERAGE:
            scores = found.setdefault((number.language, number.regime, number.shots), {})
            if number.direction:
                scores = scores.setdefault(number.direction, {"queries": 2000, "gallery": 2000})
            scores[number.metric] = number.value
    return [
        Result(task, language, "official", 2000, scores, HASH, system=name, regime=regime, shots=shots, notes=notes)
        for (language, regime, shots), scores in found.items()
    ]


def stored(folder: Path, results: list[Result]) -> Path:
    (folder / "cells").mkdir(parents=True)
    for number, result in enumerate(results):
        (folder / "cells" / f"{number:03}.json").write_text(json.dumps(result.to_dict()))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stored(tmp_path / "run", as_runs("xvnli", "UC2", "our_model & co", (StandIns.note,)))


def test_every_format_is_written_and_says_what_the_numbers_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    formats = "markdown,latex,csv,json,png,clip_benchmark,mteb"
    main(["iglue", "report", str(run), "--output", str(output), "--format", formats])
    told = capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {
        *(f"report.{kind}" for kind in ("md", "tex", "csv", "json")),
        *(f"xvnli_accuracy_{regime}.png" for regime in ("zero-shot", "translate-test", "max-shot", "few-shot")),
    }
    assert "without our_model & co xvnli ar official few-shot 1 and 32 more: stand-in pictures" in told
    text = (output / "report.md").read_text()
    ours = [line for line in text.splitlines() if line.startswith("| **our\\_model")]
    assert len(ours) == 4  # zero-shot, translate-test, max-shot; the few-shot table's
    assert all("†" in line for line in ours)
    assert f"<sup>†</sup> {StandIns.note}" in text
    assert f"items (id list): 2,000 ({HASH[:12]})" in text
    assert "mean of 4 languages (ar es fr ru), English excluded" in text
    assert "| 62.05 |" in text
    assert "| 63.43 |" in text
    latex_text = (output / "report.tex").read_text()
    assert latex_text.count("\\toprule") == latex_text.count("\\bottomrule") == 2
    assert r"our\_model \& co" in latex_text
    for path in output.glob("*.png"):
        with Image.open(path) as image:
            assert image.size > (800, 400)
            assert len(image.convert("RGB").getcolors(2**24)) > 50  # something is drawn


def test_json_keeps_the_pinned_form_of_results_and_gives_aggregates_the_same(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    main(["iglue", "report", str(run), "--output", str(output), "--format", "json"])
    content = json.loads((output / "report.json").read_text())
    results = [Result.of(row) for row in content["results"]]
    assert sorted(map(cell, results)) == sorted(map(cell, as_runs("xvnli", "UC2", "our_model & co")))
    assert {"task", "language", "protocol", "items", "accuracy"} <= set(content["results"][0])
    few = [row for row in content["aggregates"] if row["shots"] == "area"]
    assert [round(row["accuracy"], 2) for row in few] == [63.43]
    zero = next(row for row in content["aggregates"] if row["regime"] == "zero-shot")
    assert zero["languages"] == ["ar", "es", "fr", "ru"]
    assert zero["missing"] == []
    assert round(zero["accuracy"], 2) == 62.05
    assert content["comparisons"] == []
    known = [Result.of(row) for row in content["published"]]
    assert {result.system for result in known} >= {"UC2", "LXMERT"}
    assert all(result.items is None and set(result.scores) == {"accuracy", "source", "verified"} for result in known)
    (french,) = (one for one in known if one.system == "UC2" and (one.language, one.regime) == ("fr", "zero-shot"))
    assert french.scores["accuracy"] == pytest.approx(69.67, abs=0.01) and french.scores["verified"] is True


def test_json_of_retrieval_nests_directions_and_tells_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = as_runs("xflickrco", "UC2", "ours")
    uneven = [replace(one, protocol="captioned") for one in results if one.regime == "zero-shot"]
    for place, one in enumerate(uneven):
        uneven[place] = replace(one, scores={w: s | {"gallery": 100 + place} for w, s in one.scores.items()})
    main(["iglue", "report", str(stored(tmp_path / "run", [*results, *uneven])), "--json"])
    content = json.loads(capsys.readouterr().out)
    for row in content["aggregates"]:
        for way in ("text_to_image", "image_to_text"):
            assert row[way]["queries"] == 2000 and "R@1" in row[way]
            gallery = row[way]["gallery"]
            assert gallery == 2000 if row["protocol"] == "official" else len(set(gallery)) == len(row["languages"])
    published = [row for row in content["published"] if row["system"] == "UC2" and row["protocol"] == "official"]
    for row in published:
        assert row["items"] is None and {"R@1", "queries", "gallery"} <= set(row["text_to_image"])
        assert row["text_to_image"]["queries"] is None and row["source"]
    assert len({(r["language"], r["regime"], r["shots"]) for r in published}) == len(published) > 20


def test_csv_is_tidy_and_every_line_of_ours_says_stand_in(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    main(["iglue", "report", str(run), "--output", str(output), "--format", "csv", "--with-published", "none"])
    with open(output / "report.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 33 + 9  # cells; averages of nine regimes and shots, and the few-shot score
    assert all(StandIns.note in row["notes"] for row in rows)
    assert {row["source"] for row in rows} == {""}


def test_literature_can_be_all_verified_or_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["iglue", "report", str(run)])
    verified = capsys.readouterr().out
    main(["iglue", "report", str(run), "--with-published", "all"])
    every = capsys.readouterr().out
    main(["iglue", "report", str(run), "--with-published", "none"])
    none = capsys.readouterr().out
    assert "| UC2 " in verified
    assert "CCLM-3M" not in verified
    assert "| CCLM-3M " in every
    assert "not verified" in every
    assert "labelled" in every  # its protocol, in its row
    assert "UC2" not in none


def test_files_of_score_are_runs_too_and_a_missing_point_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [r for r in as_runs("xvnli", "UC2", "") if not (r.shots == "20" and r.language == "ar")]
    path = tmp_path / "mine.json"
    path.write_text("".join(json.dumps(result.to_dict()) + "\n" for result in results))
    main(["iglue", "report", str(path), "--with-published", "none"])
    text = capsys.readouterr().out
    assert "| **mine**" in text
    assert "no few-shot score of mine on xvnli without 20 (ar)" in text
    assert "(3/4)" in text


def test_runs_that_differ_on_one_thing_are_told_apart_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (result,) = [r for r in as_runs("xvnli", "UC2", "ours") if (r.language, r.regime) == ("fr", "zero-shot")]
    first = stored(tmp_path / "first", [result])
    second = stored(tmp_path / "second", [replace(result, scores={"accuracy": 50.0})])
    main(["iglue", "report", str(first), str(second), "--with-published", "none"])
    text = capsys.readouterr().out
    assert "**ours (first)**" in text
    assert "**ours (second)**" in text
    main(["iglue", "report", str(first), str(first), "--with-published", "none"])
    assert "**ours**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RUN", "--format", "word"], "no format word; give some of markdown, latex"),
        (["RUN", "--with-published", "some"], "give verified, all, none"),
        (["RUN/cells"], "holds no results"),
        (["RUN/no"], "there is no run"),
        (["RUN", "--output", "RUN"], "which is not replaced"),
        (["RUN", "--compare", "RUN", "RUN"], "kept no predictions"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], told: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["iglue", "report", *(part.replace("RUN", str(run)) for part in arguments)])
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_report_is_replaced_by_a_new_one(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    main(["iglue", "report", str(run), "--output", str(output)])
    main(["iglue", "report", str(run), "--output", str(output), "--format", "markdown"])
    assert [path.name for path in output.iterdir()] == ["report.md"]


def test_wide_tables_go_on_below_and_each_piece_keeps_the_average() -> None:
    survey = Survey(tuple(as_xm3600("OpenCLIP XLM-R-L ViT-H/14")))
    table = next(one for one in tables(survey) if "text_to_image" in one.slug)
    blocks = table.blocks()
    assert len(blocks) == 3
    assert [name for columns, _ in blocks for name in columns[:-1]] == list(find("xm3600").languages)
    assert all(columns[-1] == "avg" and len(columns) <= 13 for columns, _ in blocks)
    assert all(row.cells[-1] == "50.40" for _, rows in blocks for row in rows if row.own)
    assert latex([table]).count("\\begin{table*}") == latex([table]).count("\\toprule") == 4


def as_xm3600(system: str) -> list[Result]:
    found: dict[str, dict] = {}
    for number in published(system=system, task="xm3600", protocol="all-captions", direction="text_to_image"):
        sizes = {"queries": 7200, "gallery": 3600}
        found.setdefault(number.language, {"text_to_image": sizes})["text_to_image"][number.metric] = number.value
    return [Result("xm3600", name, "all-captions", 7200, found[name], HASH, system="ours") for name in found]


def test_different_captions_per_image_stand_under_the_table() -> None:
    scores = {"R@1": 40.0, "R@5": 50.0, "R@10": 60.0}
    results = [
        Result(
            task="multi30k",
            language=language,
            protocol="official",
            items=1000 * each,
            scores={"text_to_image": scores | {"queries": 1000 * each, "gallery": 1000}, "image_to_text": None},
            ids=HASH,
            system="ours",
            notes=(f"captions per image: {each}",),
        )
        for language, each in (("en", 5), ("de", 5), ("fr", 1), ("cs", 1))
    ]
    text = markdown(tables(Survey(tuple(results))))
    assert "captions per image: 5 in en de; 1 in fr cs" in text
    assert "captions per image differ, 1 to 5" in text


def test_a_task_of_ones_own_has_tables_and_no_literature() -> None:
    results = [Result("mine", name, "plain", 10, {"accuracy": 50.0}, HASH, system="ours") for name in ("en", "de")]
    survey = Survey(tuple(results))
    (table,) = tables(survey)
    assert [row.system for row in table.rows] == ["ours"]
    assert table.rows[0].cells == ("50.00", "50.00", "50.00")
    assert survey.views() == [View("mine", None, "", "accuracy")]


def test_latex_escapes_what_it_would_read_as_its_own() -> None:
    assert escaped("a_b & 50% {x} #1 $ ~ ^ \\ †") == (
        r"a\_b \& 50\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{} \dag{}"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    main(["iglue", "report", str(run), "--output", str(output), "--format", "latex"])
    paper = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{report}\\end{document}"
    (output / "paper.tex").write_text(paper)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"], cwd=output, check=True)


def measured(folder: Path, bundle: Path, system: str, seed: int) -> Path:
    """A run of two real tests: answers of which some are right, embeddings of which some point at their image."""
    data, runs, generator = DataFolder(bundle), RunFolder.at(folder), torch.Generator().manual_seed(seed)
    task = find("xvnli")
    test = task.test_set(data, "fr", task.protocol())
    draws = torch.rand(len(test), generator=generator)
    answers = {
        question.id: question.label if question.label and draw < 0.5 + seed / 10 else "neutral"
        for question, draw in zip(test.questions, draws.tolist(), strict=True)
    }
    options = ScoreOptions(draws=0, listed=20)
    scored = score_answers(test, answers, options)
    runs.write("xvnli-fr", replace(scored, result=replace(scored.result, system=system)))
    task = find("xflickrco")
    test = task.test_set(data, "de", task.protocol())
    images = torch.randn(len(test.gallery), 16, generator=generator)
    texts = images + (2 - seed / 4) * torch.randn(images.shape, generator=generator)
    scored = score_embeddings(test, images, texts, options)
    runs.write("xflickrco-de", replace(scored, result=replace(scored.result, system=system)))
    return folder


def changed(folder: Path, **fields: object) -> None:
    """Other fields in every result of a run."""
    for path in (folder / "cells").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_two_runs_are_compared_item_by_item(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = measured(tmp_path / "one", bundle, "one", 1)
    second = measured(tmp_path / "two", bundle, "two", 3)
    changed(first, provenance={"texts_sha256": "0"})
    output = tmp_path / "out"
    compare = ["--compare", str(first), str(second)]
    main(["iglue", "report", str(first), str(second), *compare, "--output", str(output), "--format", "json,markdown"])
    capsys.readouterr()
    content = json.loads((output / "report.json").read_text())
    by_system = {(row["system"], row["task"]): row for row in content["results"]}
    found = {(row["task"], row["direction"]): row for row in content["comparisons"]}
    assert set(found) == {("xvnli", ""), ("xflickrco", "text_to_image"), ("xflickrco", "image_to_text")}
    answers = found["xvnli", ""]
    assert answers["systems"] == ["one", "two"]
    assert answers["items"] == 1164
    assert answers["first"] == pytest.approx(by_system["one", "xvnli"]["accuracy"])
    assert answers["second"] == pytest.approx(by_system["two", "xvnli"]["accuracy"])
    assert answers["interval"][0] < answers["difference"] < answers["interval"][1]
    assert answers["p_value"] < 0.001
    way = found["xflickrco", "text_to_image"]
    assert way["second"] == pytest.approx(by_system["two", "xflickrco"]["text_to_image"]["R@1"])
    text = (output / "report.md").read_text()
    assert "### two against one, paired by item" in text
    assert "| xvnli <sup>c</sup> | fr | official | zero-shot | accuracy | 1,164 |" in text
    changed(second, notes=["partial: 3 of 5"])
    main(["iglue", "report", str(first), *compare])
    assert "</sup> second: partial: 3 of 5" in capsys.readouterr().out
    for told, other in (("texts", {"provenance": {"texts_sha256": "1"}}), ("pictures", {"notes": [StandIns.note]})):
        changed(second, **other)
        with pytest.raises(SystemExit):
            main(["iglue", "report", str(first), *compare])
        error = capsys.readouterr().err
        assert f"the runs are of other {told}; evaluate both on the same files" in error and error.count("\n") == 1
        changed(second, provenance={"texts_sha256": "0"}, notes=[])
    shutil.rmtree(second / "predictions")
    with pytest.raises(SystemExit):
        main(["iglue", "report", str(first), *compare])
    assert "kept no predictions" in capsys.readouterr().err
