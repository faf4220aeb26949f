"""A captioner on a benchmark's own files, in XM3600's form; regimes as the model's training tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cclm.cli import main
from cclm.evaluation.cells import RunFolder
from cclm.evaluation.embedder import Images, System
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.protocol import Met, QuasiZeroShot, Supervised, Unstated, ZeroShot
from cclm.evaluation.runner import RunOptions, cached, check
from cclm.evaluation.scoring import ScoreOptions
from cclm.evaluation.survey import Survey, View
from cclm.evaluation.task import DataFolder, find

ENGLISH = "a red boat on the quiet lake in front of the mountains"
SENTENCES = {
    "en": ENGLISH,
    "de": "ein rotes Boot auf dem stillen See vor den Bergen",
    "fr": "un bateau rouge sur le lac tranquille devant les montagnes",
    "zh": "一艘红色的小船停在山前平静的湖面上",
}


class Polyglot:
    """Knows one sentence in some languages, and answers in English to the others."""

    def __init__(self, *languages: str) -> None:
        self.languages, self.asked = languages, 0

    def check_language(self, language: str) -> None:
        if language == "quz":
            raise ValueError("Polyglot has no tag for quz")

    def describe(self, images: Images, language: str) -> list[str]:
        self.asked += len(images)
        return [SENTENCES[language] if language in self.languages else ENGLISH for _ in images]


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    rows = [
        {"image/key": f"{number:04x}"}
        | {language: {"caption": [f"{text} {number}", text, " "]} for language, text in SENTENCES.items()}
        for number in range(6)
    ]
    path = tmp_path / "data" / "xm3600" / "captions.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return DataFolder(tmp_path / "data")


def in_languages(data: DataFolder, *languages: str) -> list:
    task = find("xm3600_captions")
    return [task.test_set(data, language, task.protocol(), whole=False) for language in languages]


def test_the_task_is_of_all_captions_in_36_languages(data: DataFolder) -> None:
    task = find("xm3600_captions")
    assert len(task.languages) == 36 and len(task.averaged(task.protocol())) == 35
    (test,) = in_languages(data, "de")
    assert (len(test), test.ids[1], test.images()[1]) == (6, "0001", "0001.jpg")
    assert test.described[2].references == (f"{SENTENCES['de']} 2", SENTENCES["de"])  # a blank one says nothing
    assert test.notes[0] == "references without text: 6, left out"
    with pytest.raises(ValueError, match="de: 6 items where protocol all-references has 3,600"):
        task.test_set(data, "de", task.protocol())


def test_regimes_come_from_what_the_training_met(data: DataFolder, tmp_path: Path) -> None:
    met = Met(frozenset({"en", "de"}), translated=frozenset({"de"}))
    assert [met.regime(language) for language in ("en", "de", "fr")] == [Supervised, QuasiZeroShot, ZeroShot]
    captioner = Polyglot("en", "de")
    system = System("polyglot", "captioner", "0", captioner=captioner, met=met, caption_settings={"beams": 1})
    options, folder = RunOptions(scoring=ScoreOptions(draws=20)), RunFolder.at(tmp_path / "run")
    found = list(cached(system, in_languages(data, *SENTENCES), StandIns(), options, folder))
    assert [result.regime for result in found] == ["supervised", "quasi-zero-shot", "zero-shot", "zero-shot"]
    assert [result.scores["fidelity"] for result in found] == [100, 100, 0, 0]
    assert found[1].scores["BLEU-4"] > 99 and found[2].scores["BLEU-4"] < 1
    assert captioner.asked == 24
    again = list(cached(system, in_languages(data, *SENTENCES), StandIns(), options, folder))
    assert again == found and captioner.asked == 24  # nothing is written twice


def test_tables_never_mix_regimes(data: DataFolder, tmp_path: Path) -> None:
    met = Met(frozenset({"en", "de"}), translated=frozenset({"de"}))
    system = System("polyglot", "captioner", "0", captioner=Polyglot("en", "de"), met=met)
    options = RunOptions(scoring=ScoreOptions(draws=0))
    folder = RunFolder.at(tmp_path / "run")
    results = tuple(cached(system, in_languages(data, *SENTENCES), StandIns(), options, folder))
    survey = Survey(results, "none")
    assert [view.metric for view in survey.views()] == ["CIDEr", "fidelity"]
    lines = survey.lines(View("xm3600_captions", find("xm3600_captions"), "", "fidelity"))
    by_regime = {line.head.regime: list(line.numbers) for line in lines}
    assert by_regime == {"zero-shot": ["en", "fr", "zh"], "quasi-zero-shot": ["de"]}  # English as in IGLUE's tables
    assert lines[0].average is not None and lines[0].average.value == 0  # of fr and zh alone


def test_a_model_that_nobody_tells_of_stays_as_it_is_called(data: DataFolder, tmp_path: Path) -> None:
    system = System("polyglot", "captioner", "0", captioner=Polyglot())
    options = RunOptions(regime=Unstated.name, scoring=ScoreOptions(draws=0))
    (found,) = cached(system, in_languages(data, "de"), StandIns(), options, RunFolder.at(tmp_path / "run"))
    assert found.regime == "unstated"


def test_what_a_captioner_cannot_do_is_told_before_the_work(data: DataFolder) -> None:
    captioner = Polyglot()
    task = find("xm3600_captions")
    with pytest.raises(ValueError, match="quz: .* holds no item|no captions in quz"):
        task.test_set(data, "quz", task.protocol(), whole=False)
    (test,) = in_languages(data, "de")
    with pytest.raises(ValueError, match="it writes no captions, as task xm3600_captions asks"):
        check(System("mute", "dual encoder", "0"), [test], RunOptions())
    captioner.check_language = lambda language: (_ for _ in ()).throw(ValueError(f"no tag for {language}"))
    with pytest.raises(ValueError, match="no tag for de"):
        check(System("polyglot", "captioner", "0", captioner=captioner), [test], RunOptions())


def test_predictions_of_any_system_are_scored(data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "captions.json"
    file.write_text(json.dumps([{"image_id": f"{n:04x}", "caption": SENTENCES["de"]} for n in range(6)]))
    command = ["iglue", "score", "xm3600_captions", "--predictions", str(file), "--language", "de"]
    main([*command, "--data", str(data.root), "--partial", "--draws", "50", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["BLEU-4"] > 99 and found["fidelity"] == 100 and found["empty"] == 0
    file.write_text(json.dumps({f"{n:04x}": SENTENCES["de"] for n in range(5)}))
    with pytest.raises(SystemExit):
        main([*command, "--data", str(data.root), "--partial"])
    assert "1 of 6 images have no prediction, first '0005'" in capsys.readouterr().err
    file.write_text(json.dumps({f"{n:04x}": n for n in range(6)}))
    with pytest.raises(SystemExit):
        main([*command, "--data", str(data.root), "--partial"])
    assert "the caption of '0000' is '0', which is no text" in capsys.readouterr().err
