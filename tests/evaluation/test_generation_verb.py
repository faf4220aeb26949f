"""`cclm evaluate generation` on a tiny painter and a tiny judge: report, sheet, kept pictures, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.evaluation.contact_sheet import CELL, MARGIN
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.pivot.bridges import BridgeSettings
from cclm.pivot.denoisers import DenoiserSettings
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.spaces import SpaceSettings
from cclm.pivot.text_encoders import TextEncoderSettings
from cclm.pivot.text_to_image import TextToImageSettings
from cclm.types import Record
from tests.pivot.tiny_diffusion import UNET


@pytest.fixture(scope="module")
def folders(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """judge, painter and data in one folder."""
    folder = tmp_path_factory.mktemp("generation")
    model.save_pretrained(folder / "judge")
    processor.save_pretrained(folder / "judge")
    write_shards([replace(record, captions={}) for record in records], folder / "data")
    torch.manual_seed(0)
    text_encoder = TextEncoderSettings(str(folder / "judge"))
    own = text_encoder.processor(ImageSettings(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 24)
    settings = TextToImageSettings(
        text_encoder, DenoiserSettings(config=UNET), BridgeSettings("linear"), SpaceSettings(patch=2)
    )
    painter = settings.build(own).model
    painter.notes = TrainingNotes(("paint_full",), ("en",))
    (folder / "painter").mkdir()
    painter.save_pretrained(folder / "painter")
    own.save_pretrained(folder / "painter")
    return folder


def arguments(folders: Path, output: Path, *more: str) -> list[str]:
    given = {
        "--model": folders / "painter",
        "--judge": folders / "judge",
        "--data": folders / "data",
        "--languages": "en,fr",
        "--prompts": 8,
        "--sampling.steps": 2,
        "--sampling.batch": 3,
        "--samples": 3,
        "--output": output,
    }
    return ["evaluate", "generation", *(str(part) for pair in given.items() for part in pair), *more]


def test_report_sheet_and_table(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(folders, tmp_path / "report.json", "--keep"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["regimes"] == {"en": "supervised", "fr": "zero-shot"}
    assert set(report["languages"]) == {"en", "fr"} and report["protocol"]["prompts"] == 8
    assert report["languages"]["fr"]["FID"] > 0 and -1 <= report["languages"]["fr"]["consistency"] <= 1
    assert report["sampling"]["steps"] == 2 and len(report["model_hash"]) == 64
    sheet = Image.open(tmp_path / "report.png")
    assert 0 < sheet.width - 3 * (CELL + MARGIN) < CELL and sheet.height > 3 * CELL  # en, fr, data
    shown = capsys.readouterr().out
    assert "zero-shot" in shown and "report.png" in shown
    pictures = sorted((tmp_path / "report_pictures" / "fr").iterdir())
    assert len(pictures) == 8 and Image.open(pictures[0]).size == (16, 16)

    # What is kept is read again, so that a run that was cut goes on: a picture that is another counts.
    Image.new("RGB", (16, 16), "red").save(pictures[0])
    main(arguments(folders, tmp_path / "report.json", "--keep"))
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["languages"]["en"] == report["languages"]["en"]
    assert again["languages"]["fr"]["FID"] != report["languages"]["fr"]["FID"]
    with pytest.raises(SystemExit):
        main(arguments(folders, tmp_path / "report.json", "--keep", "--seed", "1"))
    assert "holds pictures of another model, seed or prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--languages", "en,xx"), "no texts in language xx"),
        (("--languages", "fr"), "reference language 'en' is none of fr; add it to them"),
        (("--prompts", "25"), "the data has 24 records to draw 25 prompts from"),
        (("--prompts", "12", "--gallery", "5"), "12 prompts do not fill galleries of 5"),
        (("--model", "nowhere"), "no pretrained folder at nowhere"),
        (("--judge", "nowhere/at/all"), "nowhere/at/all"),
        (("--sampling.steps", "0"), "steps=0"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_painted(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(arguments(folders, tmp_path / "report.json", *more))
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "report.json").exists()


def test_another_report_is_not_overwritten(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text('{"languages": {}, "texts": {}}')
    with pytest.raises(SystemExit):
        main(arguments(folders, tmp_path / "report.json"))
    assert "is no report of `cclm evaluate generation`" in capsys.readouterr().err
