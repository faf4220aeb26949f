"""`cclm generate` of texts: one picture, a grid, numbered files, what diffusers needs; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cclm.cli import main
from cclm.models.processor import ImageSettings
from cclm.pivot.bridges import BridgeSettings
from cclm.pivot.denoisers import DenoiserSettings
from cclm.pivot.image_to_text import Built
from cclm.pivot.sampling import SamplingOptions
from cclm.pivot.spaces import SpaceSettings
from cclm.pivot.text_encoders import TextEncoderSettings
from cclm.pivot.text_to_image import TextToImage, TextToImageSettings
from tests.pivot.test_generate_verb import failure
from tests.pivot.test_image_to_text import saved
from tests.pivot.tiny_diffusion import UNET

STEPS = ("--steps", "2")


@pytest.fixture
def folder(language_models: Callable[..., Path], tmp_path: Path) -> Path:
    settings = TextToImageSettings(
        TextEncoderSettings(str(language_models("llama")), layer=1),
        DenoiserSettings(config=UNET),
        BridgeSettings("resampler", states=4, depth=1, heads=2),
        SpaceSettings(patch=2),
    )
    torch.manual_seed(1)
    model = settings.build(settings.text_encoder.processor(ImageSettings(16, (0.5,) * 3, (0.5,) * 3), 24)).model
    place = tmp_path / "model"
    place.mkdir()
    model.save_pretrained(place)
    model.processor.save_pretrained(place)
    return place


def painted(folder: Path, prompt: str, count: int, seed: int = 0, **options: object) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    chosen = SamplingOptions(steps=2, **options)
    pictures = TextToImage.from_pretrained(folder).generate([prompt] * count, chosen, generator)
    return [np.asarray(picture) for picture in pictures]


def test_a_prompt_is_painted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "one.png"
    options = ("--guidance", "2", "--negative", "un chat", "--seed", "3", *STEPS)
    main(["generate", str(folder), "--prompt", "ein Ball", "--language", "de", "--output", str(output), *options])
    (wanted,) = painted(folder, "ein Ball", 1, 3, guidance=2.0, negative="un chat")
    assert (np.asarray(Image.open(output)) == wanted).all()
    assert capsys.readouterr().out.strip() == f"{output}: 1 picture(s) of 16 x 16 pixels"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_several_prompts_and_pictures_are_a_grid_or_numbered_files(folder: Path, tmp_path: Path) -> None:
    """The n-th picture of each prompt starts from the same noise, whatever is painted at once."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n\nun chat\n", encoding="utf-8-sig")
    several = ("--prompts", str(prompts), "--count", "3", *STEPS)
    main(["generate", str(folder), "--output", str(tmp_path / "grid.png"), *several])
    main(["generate", str(folder), "--output", str(tmp_path / "files"), "--batch_size", "2", *several])
    grid = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert grid.shape == (32, 48, 3)
    assert {path.name for path in (tmp_path / "files").iterdir()} == {
        f"000{p}-0{n}.png" for p in (0, 1) for n in range(3)
    }
    for row, prompt in enumerate(("a red ball", "un chat")):
        for place, wanted in enumerate(painted(folder, prompt, 3)):
            cell = grid[16 * row : 16 * row + 16, 16 * place : 16 * place + 16]
            written = np.asarray(Image.open(tmp_path / "files" / f"000{row}-0{place}.png")).astype(int)
            assert np.abs(cell - wanted).max() <= 1 and np.abs(written - wanted).max() <= 1


def test_more_files_than_two_digits_count_are_replaced_like_fewer(folder: Path, tmp_path: Path) -> None:
    options = ("--prompt", "ball", "--output", str(tmp_path / "files"), "--steps", "1", "--guidance", "1")
    main(["generate", str(folder), *options, "--count", "101", "--batch_size", "101"])
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names[0] == "0000-000.png" and names[100] == "0000-100.png"
    main(["generate", str(folder), *options])
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["0000-00.png"]


def test_what_plain_diffusers_needs(folder: Path, tmp_path: Path) -> None:
    pipeline, states = tmp_path / "pipeline", tmp_path / "states.safetensors"
    main(["generate", str(folder), "--pipeline", str(pipeline)])
    main(["generate", str(folder), "--prompt", "a red ball", "--states", str(states)])
    assert (pipeline / "model_index.json").is_file() and (pipeline / "README.md").is_file()
    assert load_file(states)["prompt_embeds"].shape == (1, 4, 24)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output", "x.png"], "there is nothing to paint; give --prompt"),
        (["--prompt", "ball"], "there is no --output; name a picture"),
        (["--prompt", "ball", "--prompts", "p.txt", "--output", "x.png"], "both --prompt and --prompts"),
        (["--prompts", "nowhere.txt", "--output", "x.png"], "no file of prompts at nowhere.txt"),
        (["--prompt", "ball", "--output", "x.tiff"], "give a name in .png, .jpg, .webp, or a folder"),
        (["--prompt", "ball", "--output", "x.png", "--count", "0"], "count is 0; give 1 or more"),
        (["--prompt", "ball", "--output", "x.png", "--batch_size", "0"], "batch_size is 0; give 1 or more"),
        (["--prompt", "ball", "--output", "x.png", "--seed", str(2**64)], "give a number from 0 to 2^64 - 1"),
        (["--prompt", "ball", "--output", ".png"], "--output .png is an ending without a name; give one, as star.png"),
        (
            ["--prompt", "ball", "--output", "x.webp", "--count", "1024"],
            "the grid is 16384 x 16 pixels, and .webp holds 16383 a side; name a .png, or a folder",
        ),
        (["--pipeline", "model"], ", which is not replaced; choose a new"),
        (
            ["--prompt", "ball", "--output", "x.png", "--guidance", "0"],
            "guidance=0.0; give 1 (none) to 1000 (4 to 8 are usual)",
        ),
        (
            ["--prompt", "ball", "--output", "x.png", "--language", "xx"],
            "language 'xx' is unknown to this model; it reads",
        ),
        (["--prompt", "ball " * 30, "--output", "x.png"], "the model reads 24; shorten it"),
        (["--prompt", "ball", "--output", "x.png", "--scheduler", "flow_euler"], "cannot sample a model that predicts"),
        (["--prompt", "ball", "--output", "x.png", "--image", "y.png"], "holds a model that paints, from texts alone"),
        (["--prompt", "ball", "--output", "x.png", "--steps", "5000"], "steps=5000 do not fit DDIMScheduler ("),
        (["--prompt", "ball", "--output", "x.png", "--beams", "3"], "--beams: "),
        (
            ["--prompt", "ball", "--output", "x.png", "--guidance", "much"],
            "Parser key \"guidance\": Expected a <class 'float'>. Given value: much",
        ),
        (["--prompt", "<image> ball", "--output", "x.png"], "'<image> ball' has a mark <image>, but this model paints"),
        (["--prompt", "ball", "--output", "model/config.json/x.png"], "cannot be written: "),
        (["--prompt", "ball", "--states", "model/config.json/x.safetensors"], "cannot be written: "),
        (["--prompt", "ball", "--states", "x.bin"], "give a name in .safetensors"),
        (["--prompt", "ball", "--output", "x.png", "--device", "tpu9"], "tpu9"),
    ],
)
def test_what_cannot_be_painted_is_told_in_one_line(
    folder: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert told in failure(capsys, str(folder), *arguments)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_folders_of_other_files_are_not_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").write_bytes(b"")
    told = failure(capsys, str(folder), "--prompt", "ball", "--output", str(tmp_path / "mine"))
    assert "holds holiday.png, which is not replaced" in told


def test_a_model_that_writes_texts_refuses_what_paints(
    build: Callable[..., Built], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    writer = saved(build(), tmp_path / "writer")
    told = failure(capsys, str(writer), "--prompt", "ball", "--output", "x.png")
    assert "--output" in told and "holds a model that writes texts; leave it out" in told


def test_a_language_that_nobody_knows_is_told_where_there_are_no_tags(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        whole = (folder / file).read_text(encoding="utf-8")
        (folder / file).write_text(whole.replace("<2", "<no"), encoding="utf-8")
    command = [str(folder), "--prompt", "ball", *STEPS, "--output", str(tmp_path / "x.png")]
    assert "language 'qqq' is unknown; give a code such as de" in failure(capsys, *command, "--language", "qqq")
    main(["generate", *command, "--language", "tr"])
    assert (tmp_path / "x.png").is_file()
