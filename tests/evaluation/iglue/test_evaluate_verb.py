"""`cclm iglue evaluate`: from a model and the benchmark's files to results, or to one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cclm.cli import main
from cclm.evaluation.result import Result
from cclm.evaluation.runs import read_run
from cclm.evaluation.task import names
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.verbs.iglue.evaluate import line
from tests.evaluation.conftest import COLOURS, picture
from tests.evaluation.iglue import models

CAPTIONS = {
    "en": {colour: f"a {colour} block" for colour in COLOURS},
    "de": {colour: f"ein Block, {colour}" for colour in COLOURS},
}


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows in the form of xFlickr&CO, their translations, and Tatoeba; pictures beside them."""
    root = tmp_path_factory.mktemp("data")
    for language, texts in CAPTIONS.items():
        rows = [{"sentences": [text], "id": name, "img_path": f"{name}.png"} for name, text in texts.items()]
        lines(root / f"xFlickrCO/annotations/{language}/test.jsonl", rows)
        if language != "en":
            english = [row | {"sentences": [CAPTIONS["en"][row["id"]]]} for row in rows]
            lines(root / f"xFlickrCO/annotations_machine-translate/{language}/test_gmt.jsonl", english)
    (root / "images").mkdir()
    for colour in COLOURS:
        (root / "images" / f"{colour}.png").write_bytes(picture(colour, "wide", 0))
    (root / "tatoeba/v1").mkdir(parents=True)
    for language, texts in (("deu", CAPTIONS["de"]), ("eng", CAPTIONS["en"])):
        (root / f"tatoeba/v1/tatoeba.deu-eng.{language}").write_text("\n".join(texts.values()) + "\n")
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.clip(
        tmp_path_factory.mktemp("clip"), [text for texts in CAPTIONS.values() for text in texts.values()]
    )


@pytest.fixture(scope="module")
def ours(model: CCLMModel, processor: CCLMProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    capsys.readouterr()
    main(["iglue", "evaluate", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["iglue", "evaluate", *map(str, arguments)])
    told = capsys.readouterr()
    assert stopped.value.code == 2 and told.out == "" and told.err.count("\n") == 1
    return told.err


def test_clip_on_the_benchmarks_own_files(bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(
        capsys, "--model", clip, "--tasks", "multi30k", "--languages", "cs", "--data", bundle, "--stand-in-images"
    )
    assert [(one["task"], one["language"], one["items"]) for one in found] == [("multi30k", "cs", 1000)]
    assert found[0]["text_to_image"]["queries"] == found[0]["text_to_image"]["gallery"] == 1000
    assert "stand-in pictures, not the benchmark's: the number means nothing" in found[0]["notes"]


def test_results_and_cells_of_every_kind_of_model(
    data: Path, clip: Path, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    siglip = models.siglip(tmp_path / "siglip", list(CAPTIONS["de"].values()))
    sentences = models.sentence_encoder(tmp_path / "sentences", list(CAPTIONS["de"].values()))
    common = ("--data", data, "--partial", "--output", tmp_path / "run")
    for folder, kind in ((clip, "clip dual encoder"), (siglip, "siglip dual encoder"), (ours, "cclm model")):
        found = evaluated(capsys, "--model", folder, "--tasks", "xflickrco", "--languages", "de,en", *common)
        assert [one["language"] for one in found] == ["de", "en"]
        assert found[0]["text_to_image"]["queries"] == 4 and kind in found[0]["provenance"]["kind"]
    found = evaluated(capsys, "--model", sentences, "--tasks", "tatoeba", "--languages", "de", *common)
    assert found[0]["items"] == 4 and found[0]["to_english"]["gallery"] == 4
    reranked = evaluated(
        capsys, "--model", ours, "--tasks", "xflickrco", "--languages", "de", "--rerank", 2, "--rerank_score", "logit",
        *common, "--system", "two stages",
    )  # fmt: skip
    assert reranked[0]["provenance"]["settings"]["rerank"] == 2
    assert len(read_run(tmp_path / "run")) == 8


def test_shipped_translations_are_another_regime(
    data: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", clip, "--tasks", "xflickrco", "--data", data, "--partial", "--output", tmp_path / "run")
    english = evaluated(capsys, *common, "--languages", "en")[0]
    translated = evaluated(capsys, *common, "--languages", "de", "--translate", "shipped")[0]
    assert (translated["language"], translated["regime"]) == ("de", "translate-test")
    assert translated["text_to_image"] == english["text_to_image"]
    for task, reason in (
        ("tatoeba", "so there is nothing to translate"),
        ("multi30k", "give --translate a model's name"),
    ):
        told = refused(capsys, "--model", clip, "--tasks", task, "--data", data, "--translate", "shipped")
        assert reason in told


def test_all_tasks_are_those_that_can_be_measured(
    data: Path, clip: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    common = ("--model", clip, "--data", data, "--partial")
    found = evaluated(capsys, *common, "--tasks", "all")
    assert [(one["task"], one["language"]) for one in found] == [
        ("tatoeba", "de"), ("xflickrco", "en"), ("xflickrco", "de"),
    ]  # fmt: skip
    told = [line for line in caplog.messages if line.startswith("left out ")]
    assert any(line.startswith("left out xflickrco in es, id, ja, ru, tr, zh: ") for line in told)
    assert [line.split()[2].rstrip(":") for line in told].count("babel_imagenet") == 1
    assert {line.split()[2].rstrip(":") for line in told} == {*names()}
    assert max(map(len, told)) < 400
    caplog.clear()
    found = evaluated(capsys, *common, "--tasks", "all", "--languages", "en")
    assert [(one["task"], one["language"]) for one in found] == [("xflickrco", "en")]
    assert any("task tatoeba has no test in en" in line for line in caplog.messages)
    assert "has no XVNLI/annotations/" in refused(capsys, *common, "--tasks", "all,xvnli", "--languages", "en")
    told = refused_in_the_end(capsys, *common, "--tasks", "all", "--images", data / "tatoeba", "--languages", "en")
    assert told == "cclm: --tasks all: none can be measured here, for the reasons above; name one\n"


def refused_in_the_end(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Of a run that told other things before."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["iglue", "evaluate", *map(str, arguments)])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines(keepends=True)[-1]


def test_a_translation_model_reads_the_test_first(
    data: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    translator = models.nllb(tmp_path / "nllb", list(CAPTIONS["de"].values()))
    common = ("--model", clip, "--data", data, "--partial", "--output", tmp_path / "run", "--translation.beams", 1)
    common += ("--translation.max_tokens", 8)
    found = evaluated(capsys, *common, "--tasks", "xflickrco", "--languages", "de", "--translate", translator)
    assert [(one["language"], one["regime"]) for one in found] == [("de", "translate-test")]
    assert f"translated to English by {translator}" in found[0]["notes"]
    kept = json.loads(next((tmp_path / "run" / "translations").iterdir()).read_text())
    assert set(kept) == set(CAPTIONS["de"].values())
    again = evaluated(capsys, *common, "--tasks", "xflickrco", "--languages", "de", "--translate", translator)
    assert again == found and len(read_run(tmp_path / "run")) == 1
    told = refused(capsys, *common, "--tasks", "xflickrco", "--languages", "de", "--translate", clip)
    assert "is a model of type clip; give a Marian, M2M100, NLLB or mBART, or shipped" in told
    told = refused(capsys, *common, "--tasks", "tatoeba", "--languages", "de", "--translate", translator)
    assert "there is nothing to translate" in told


def test_a_line_tells_all_that_a_number_depends_on(data: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"iglue evaluate --model {clip} --tasks xflickrco --languages de --data {data} --partial".split())
    told = capsys.readouterr().out
    assert told.startswith("xflickrco de (official, zero-shot, 4 items): text to image R@1/5/10 ")
    assert "captions per image: 1" in told and told.count("\n") == 1
    few = Result("xvnli", "ar", "official", 1164, {"accuracy": 50.0}, "", regime="few-shot", shots="48")
    assert line(few) == "xvnli ar (official, few-shot, 48 shots, 1,164 items): accuracy 50.00"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"--model": "{data}"}, "has no config.json; give a pretrained folder of cclm, a CLIP"),
        ({"--tasks": "xflickr"}, "no task 'xflickr'"),
        ({"--tasks": "xflickrco, xvnli ", "--languages": " en ,"}, "has no XVNLI/annotations/en/test.jsonl"),
        ({"--tasks": ","}, "--tasks ',' names no task; there are"),
        ({"--languages": "de,xx"}, "no test in language xx; these tasks have de, en"),
        ({"--protocol": "strict"}, "has no protocol 'strict'"),
        ({"--data": "{data}/absent"}, "is no folder"),
        ({"--languages": "ru"}, "has no xFlickrCO/annotations/ru/test.jsonl"),
        ({"--images": "{data}/xFlickrCO"}, "4 of 4 images cannot be used (red.png: image missing"),
        ({"--images": "{data}", "--stand-in-images": None}, "exclude each other"),
        ({"--device": "none"}, "no device 'none' here"),
        ({"--rerank": "3"}, "has no matching head to rerank by"),
        ({"--rerank_score": "nope"}, "rerank_score is 'nope'; choose log_odds or logit"),
        ({"--rerank_similarity": "1"}, "rerank_similarity is given without rerank"),
        ({"--tasks": "xflickrco,xvnli"}, "has no XVNLI/annotations/"),
        ({"--output": "{data}/images/red.png"}, "cannot be written"),
    ],
)
def test_what_is_wrong_is_one_line_before_the_work(
    data: Path, clip: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str | None], reason: str
) -> None:
    given = {"--model": str(clip), "--tasks": "xflickrco", "--data": str(data), "--languages": "de", "--partial": None}
    given |= changed
    words = [word.format(data=data) for pair in given.items() for word in pair if word is not None]
    if given["--tasks"] == "xflickrco,xvnli":
        words[words.index("de")] = "en"
    assert reason in refused(capsys, *words)


def test_another_number_of_rows_is_refused(data: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "--model", clip, "--tasks", "xflickrco", "--languages", "de", "--data", data)
    assert "4 items where protocol official has 2,000" in told and "--partial" in told


def test_another_name_computes_nothing_anew(
    data: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", clip, "--tasks", "xflickrco", "--languages", "de", "--data", data, "--partial")
    first = evaluated(capsys, *common, "--output", tmp_path / "run")[0]
    renamed = evaluated(capsys, *common, "--output", tmp_path / "run", "--system", "a CLIP")[0]
    assert renamed == first | {"system": "a CLIP"}
    (kept,) = read_run(tmp_path / "run")
    assert kept.result.system == "a CLIP" and kept.result.provenance["model"] == str(clip)


def test_a_cell_that_is_used_again_counts(
    data: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test that was changed and changed back: its first cell is the newest again, without being computed anew."""
    common = ("--model", clip, "--tasks", "xflickrco", "--languages", "de", "--data", data, "--partial")
    common += ("--output", tmp_path / "run")
    file = next(data.rglob("de/test.jsonl"))
    first, own = evaluated(capsys, *common)[0], file.read_text(encoding="utf-8")
    caption = json.loads(own.split("\n")[0])["sentences"][0]
    try:
        file.write_text(own.replace(json.dumps(caption, ensure_ascii=False), '"etwas anderes"'), encoding="utf-8")
        second = evaluated(capsys, *common)[0]
    finally:
        file.write_text(own, encoding="utf-8")
    assert second["provenance"]["texts_sha256"] != first["provenance"]["texts_sha256"]
    assert second["provenance"]["pictures_sha256"] == first["provenance"]["pictures_sha256"]
    (kept,) = read_run(tmp_path / "run")
    assert kept.result.to_dict() == second
    assert evaluated(capsys, *common)[0] == first
    (kept,) = read_run(tmp_path / "run")
    assert kept.result.to_dict() == first and len(kept.older) == 1
