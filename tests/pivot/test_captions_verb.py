"""`cclm evaluate captions`: from shards and a model to a report, its captions, a chart; and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.evaluation.caption_report import CaptionReport
from cclm.pivot.image_to_text import Built
from cclm.pivot.notes import TrainingNotes
from cclm.types import Record
from tests.data import conftest as drawn

WHAT = {
    "en": ("a brown dog runs through the deep snow", "two children play football in the park"),
    "de": ("ein brauner Hund läuft durch den tiefen Schnee", "zwei Kinder spielen Fußball in dem Park"),
    "fr": ("un chien brun court dans la neige profonde", "deux enfants jouent au football dans le parc"),
}
WHERE = {"en": "near the old house", "de": "neben dem alten Haus", "fr": "près de la vieille maison"}


def record(number: int, start: int = 0) -> Record:
    """English and German captions of one of two things; the same sentence in three languages."""
    thing, place = number % 2, number % 3 == 0
    said = {code: WHAT[code][thing] + (f" {WHERE[code]}" if place else "") for code in WHAT}
    captions = {code: [said[code], WHAT[code][thing]] for code in ("en", "de")}
    return Record(f"p{start + number:04}", drawn.picture(number), captions, said)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    write_shards((record(number) for number in range(12)), folder / "dev")
    write_shards((record(number, 100) for number in range(20)), folder / "train")
    return folder


CAPTIONER = """
import torch
from PIL import Image

SAID = {said}

class Captioner:
    name, sha256, image_size = "echo", "1", 32
    asked = 0

    def check_language(self, language):
        if language not in ("en", "de", "fr"):
            raise ValueError(f"no tag for {{language}}")

    def describe(self, images, language):
        Captioner.asked += len(images)
        if Captioner.asked > {limit}:
            raise KeyboardInterrupt
        return [SAID[language] for _ in images]

    def pooled(self, images):
        small = [torch.tensor(list(image.resize((4, 4)).tobytes())).float() for image in images]
        return torch.nn.functional.normalize(torch.stack(small) + 1, dim=-1)

def make():
    return Captioner()

class Eye:
    sha256 = "2"

    def embed_images(self, images):
        return Captioner().pooled(images)

    def embed_texts(self, texts, language):
        return torch.ones(len(texts), 48) / 48**0.5
"""


@pytest.fixture
def captioner(tmp_path: Path) -> Callable[..., str]:
    def of(said: dict[str, str], limit: int = 10**6) -> str:
        (tmp_path / "own.py").write_text(CAPTIONER.format(said=said, limit=limit), encoding="utf-8")
        return f"{tmp_path / 'own.py'}:make"

    return of


def run(shards: Path, output: Path, *more: str) -> dict:
    main(["evaluate", "captions", "--data", str(shards / "dev"), "--output", str(output), "--draws", "20", *more])
    return json.loads(output.read_text(encoding="utf-8"))


SAID = {code: sentences[0] for code, sentences in WHAT.items()}


def test_both_kinds_of_reference_by_language(
    shards: Path, captioner: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out" / "report.json"
    model = captioner(SAID | {"fr": SAID["en"]})  # answers in English where French is asked for
    found = run(shards, output, "--model", model, "--languages", "en,de,fr", "--nearest", str(shards / "train"))
    assert {code: list(own) for code, own in found["languages"].items()} == {
        "en": ["captions", "parallel"],
        "de": ["captions", "parallel"],
        "fr": ["parallel"],
    }
    english, german, french = (found["languages"][code]["parallel"] for code in ("en", "de", "fr"))
    assert (english["pictures"], english["fidelity"], german["fidelity"], french["fidelity"]) == (12, 100, 100, 0)
    assert "of_en" not in english and german["of_en"] == pytest.approx(100 * german["CIDEr"] / english["CIDEr"])
    assert german["CIDEr"] > 50 and french["CIDEr"] < 1 and french["of_en"] < 2
    assert german["of_en_interval"][0] <= german["of_en"] <= german["of_en_interval"][1]
    assert found["languages"]["de"]["captions"]["BLEU-4"] > german["BLEU-4"]  # two references, one of them exact
    assert found["regimes"] == {"en": "unstated", "de": "unstated", "fr": "unstated"}
    assert any(note.startswith("chrF: nrefs:1|") for note in found["notes"]["fr"]["parallel"])
    # Every picture of the test stands in the training data too, with its own texts.
    near = {(code, kind): own["BLEU-4"] for code, kinds in found["nearest"].items() for kind, own in kinds.items()}
    assert len(near) == 5 and list(near.values()) == pytest.approx([100.0] * 5)
    assert set(found["nearest"]) == {"en", "de", "fr"}
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.width > 500
    shown = capsys.readouterr().out
    assert "captions of 12 pictures against parallel, %" in shown and "BLEU-4: nrefs:2|bs:20" in " ".join(shown.split())
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 36 and {row["language"] for row in rows} == {"en", "de", "fr"}
    again = CaptionReport.read(output)
    assert again.to_dict() == found


def test_captions_of_a_file_score_the_same(shards: Path, captioner: Callable[..., str], tmp_path: Path) -> None:
    first = run(shards, tmp_path / "first.json", "--model", captioner(SAID), "--languages", "de,fr")
    more = ["--nearest", str(shards / "train"), "--nearest_by", f"{tmp_path / 'own.py'}:Eye"]
    near = run(
        shards, tmp_path / "near.json", "--predictions", str(tmp_path / "first.jsonl"), "--languages", "de", *more
    )
    assert near["nearest"]["de"]["parallel"]["BLEU-4"] == pytest.approx(100)
    second = run(
        shards, tmp_path / "second.json", "--predictions", str(tmp_path / "first.jsonl"), "--languages", "de,fr"
    )
    assert second["languages"] == first["languages"] and second["predictions_hash"]


def test_a_run_that_was_stopped_goes_on(
    shards: Path, captioner: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cclm.evaluation.shard_captions.CHUNK", 4)
    output, chosen = tmp_path / "report.json", ["--languages", "en,de"]
    with pytest.raises(SystemExit):
        run(shards, output, "--model", captioner(SAID, limit=16), *chosen)
    kept = output.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 16 and not output.exists()
    limit = 24 - 16  # what is left
    model = captioner(SAID, limit=limit)
    # The file is another, so its captions are: a source is told by all that makes the captions.
    assert [json.loads(line)["source"] for line in kept] == [json.loads(kept[0])["source"]] * 16
    with pytest.raises(SystemExit):
        run(shards, output, "--model", model, *chosen)
    found = run(shards, output, "--model", captioner(SAID), *chosen)
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 24 and len({row["source"] for row in rows}) == 1
    assert run(shards, output, "--model", captioner(SAID), *chosen)["languages"] == found["languages"]


def test_regimes_stand_in_the_folder(
    shards: Path, build: Callable[..., Built], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made = build()
    made.model.notes = TrainingNotes(("chat_s1",), ("de", "en"), {"de": 0.05})
    (tmp_path / "model").mkdir()
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--languages", "en,de,fr", "--generation.max_tokens", "6"]
    found = run(shards, tmp_path / "report.json", *command, "--nearest", str(shards / "train"))
    assert found["regimes"] == {"en": "supervised", "de": "quasi-zero-shot", "fr": "zero-shot"}
    assert found["settings"]["generation"]["max_tokens"] == 6 and found["settings"]["prompt"] == "<image><2{code}>"
    assert "quasi-zero-shot" in capsys.readouterr().out
    assert found["nearest"]["fr"]["parallel"]["BLEU-4"] == pytest.approx(100)  # by what its image encoder sees
    stamp = (tmp_path / "report.jsonl").read_bytes()
    assert run(shards, tmp_path / "report.json", *command)["languages"] == found["languages"]
    assert (tmp_path / "report.jsonl").read_bytes() == stamp


def test_what_is_wrong_is_told_in_one_line(
    shards: Path, captioner: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = captioner(SAID)
    (tmp_path / "odd.jsonl").write_text('{"language": "de", "id": 3, "caption": "x"}\n')
    (tmp_path / "few.jsonl").write_text('{"language": "de", "id": "p0000", "caption": "x"}\n')
    (tmp_path / "taken.json").write_text("{}")
    output = str(tmp_path / "report.json")

    def told(*more: str, to: str = output) -> str:
        with pytest.raises(SystemExit):
            main(["evaluate", "captions", "--data", str(shards / "dev"), "--output", to, *more])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cclm: ")]
        return line

    german = ["--languages", "de"]
    assert "give either --model" in told(*german)
    assert "give either --model" in told("--model", model, "--predictions", str(tmp_path / "few.jsonl"), *german)
    assert "no texts in language cs" in told("--model", model, "--languages", "de,cs")
    assert "no captions in fr; there are some in de, en: ask for those" in told(
        "--model", model, "--languages", "fr", "--references", "captions"
    )
    assert "--references is 'all'" in told("--model", model, "--references", "all", *german)
    assert "line 1 is no caption" in told("--predictions", str(tmp_path / "odd.jsonl"), *german)
    assert "11 of 12 images have no prediction" in told("--predictions", str(tmp_path / "few.jsonl"), *german)
    assert "holds no captions in fr" in told("--predictions", str(tmp_path / "few.jsonl"), "--languages", "fr")
    assert "is no report of `cclm evaluate captions`" in told(
        "--model", model, *german, to=str(tmp_path / "taken.json")
    )
    nearest = ["--nearest", str(shards / "dev")]
    assert "12 pictures are of the test and of --nearest" in told("--model", model, *german, *nearest)
    assert not Path(output).with_suffix(".jsonl").exists()  # before anything is written
    assert "nowhere" in told("--model", model, *german, "--nearest", "nowhere")
    assert "give --nearest_by, a dual encoder" in told("--predictions", str(tmp_path / "few.jsonl"), *german, *nearest)
