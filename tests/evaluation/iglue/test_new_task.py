"""A task is added in one file, from what README says alone."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from cclm.cli import main
from cclm.evaluation.task import DataFolder, find

README = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
MOODS = ("glad", "sad", "sad", "glad")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """README's file as it is printed, texts of the form that its docstring gives, and a system's answers."""
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if block.startswith("# moods.py")
    )
    (tmp_path / "moods.py").write_text(code, encoding="utf-8")
    (tmp_path / "texts" / "moods").mkdir(parents=True)
    for language in ("en", "de"):
        rows = [
            {"id": str(number), "picture": f"{number}.jpg", "text": f"{language} {number}", "mood": mood}
            for number, mood in enumerate(MOODS)
        ]
        (tmp_path / "texts" / "moods" / f"{language}.jsonl").write_text(
            "\n".join(map(json.dumps, rows)), encoding="utf-8"
        )
    answers = [{"id": str(number), "prediction": "glad"} for number in range(4)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(verb: str) -> list[str]:
    """The command about it that README prints."""
    printed = re.findall(rf"`(cclm iglue {verb} [^`]*moods\.py[^`]*)`", README)
    return shlex.split(printed[0])[1:]


def test_it_is_loaded_under_its_path(project: Path) -> None:
    task = find("moods.py")
    test = task.test_set(DataFolder(project / "texts"), "de", task.protocol())
    assert (len(test), test.images()[0], task.averaged(task.protocol())) == (4, "0.jpg", ("de",))


def test_it_is_checked(project: Path, capsys: pytest.CaptureFixture) -> None:
    main([*command("check"), "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert [(split["language"], split["state"], split["found"]) for split in found["splits"]] == [
        ("en", "complete", 4),
        ("de", "complete", 4),
    ]
    main(command("check"))
    assert "missing, as 0.jpg" in capsys.readouterr().out


def test_it_is_scored(project: Path, capsys: pytest.CaptureFixture) -> None:
    main([*command("score"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("task", "language", "protocol", "items", "accuracy")} == {
        "task": "moods",
        "language": "de",
        "protocol": "official",
        "items": 4,
        "accuracy": 50.0,
    }


def test_a_cut_file_is_refused(project: Path, capsys: pytest.CaptureFixture) -> None:
    path = project / "texts" / "moods" / "de.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:3]), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(command("score"))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "3 items where protocol official has 4" in error and "--partial" in error


def test_a_file_that_does_not_run_is_named(project: Path) -> None:
    (project / "moods.py").write_text("TASK = undefined", encoding="utf-8")
    with pytest.raises(ValueError, match=r"moods\.py does not run \(NameError"):
        find("moods.py")


def test_a_file_without_a_task_is_named(project: Path) -> None:
    (project / "moods.py").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"moods\.py has no TASK"):
        find("moods.py")
