"""`cclm generate` about pictures: one answer, one a picture, several pictures in a prompt, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cclm.cli import main
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_to_text import Built, ImageToText, Prompt
from cclm.pivot.language_model import LanguageModelSettings
from tests.pivot.conftest import TEMPLATE, picture
from tests.pivot.test_image_to_text import saved

SHORT = ("--max_tokens", "6")


@pytest.fixture
def folder(build: Callable[..., Built], tmp_path: Path) -> Path:
    return saved(build(), tmp_path / "model")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


def wanted(folder: Path, prompts: list[Prompt]) -> list[str]:
    return ImageToText.from_pretrained(folder).answer(prompts, GenerationOptions(max_tokens=6))


def failure(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *arguments])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1
    return error[0]


def test_one_picture_is_answered_as_the_model_was_trained(
    folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture
) -> None:
    main(["generate", str(folder), "--image", str(pictures[0]), "--language", "de", *SHORT])
    assert capsys.readouterr().out.strip() == wanted(folder, [Prompt((picture(0),), "de")])[0]


def test_several_pictures_are_a_line_each(folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture) -> None:
    given = [word for path in pictures for word in ("--image", str(path))]
    answers = wanted(folder, [Prompt((picture(n),), "fr") for n in range(3)])
    for batch in ("1", "2"):
        main(["generate", str(folder), *given, "--language", "fr", "--batch_size", batch, *SHORT])
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"{path}\t{answer}" for path, answer in zip(pictures, answers, strict=True)]


def test_a_prompt_is_put_behind_the_picture_or_has_marks_of_its_own(
    folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture
) -> None:
    one = ["generate", str(folder), "--image", str(pictures[0]), "--language", "de", *SHORT]
    asked = "<image>ein hund <2{code}>"
    for prompt in ("ein hund <2{code}>", "ein hund ", asked):  # what names no language gets the tag of training
        main([*one, "--prompt", prompt])
        assert capsys.readouterr().out.strip() == wanted(folder, [Prompt((picture(0),), "de", asked)])[0]
    both = "<image> und <image><2{code}>"
    main([*one, "--image", str(pictures[1]), "--prompt", both])
    assert capsys.readouterr().out.strip() == wanted(folder, [Prompt((picture(0), picture(1)), "de", both)])[0]


@pytest.mark.parametrize("more", [(), ("--beams", "3"), ("--sample", "true", "--temperature", "2", "--top_p", "0.9")])
def test_at_a_terminal_words_come_as_they_are_written(
    folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    class Terminal(io.StringIO):
        writes = 0

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.writes += 1
            return super().write(text)

    arguments = ["generate", str(folder), "--image", str(pictures[0]), "--language", "de", "--max_tokens", "12", *more]
    seen = []
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        main(arguments)
        seen.append(stream)
    assert seen[0].getvalue().strip() == seen[1].getvalue().strip() != ""
    assert seen[0].writes > 4 or "--beams" in more


def test_what_is_missing_or_unknown_is_one_line(
    folder: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one = [str(folder), "--image", str(pictures[0])]
    assert "language 'xx' is unknown to this model; it has tags for de, en, fr" in failure(
        capsys, *one, "--language", "xx"
    )
    assert f"no picture at {tmp_path / 'no.png'}; name a picture" in failure(
        capsys, str(folder), "--image", str(tmp_path / "no.png")
    )
    assert f"{tmp_path} is a folder; name a picture" in failure(capsys, str(folder), "--image", str(tmp_path))
    (tmp_path / "bad.png").write_bytes(b"none")
    assert "bad.png: image not readable; give a jpg, png or webp file" in failure(
        capsys, str(folder), "--image", str(tmp_path / "bad.png")
    )
    assert f"{TEMPLATE!r} has 1 mark(s) <image> for 0 picture(s); give --image once" in failure(capsys, str(folder))
    assert "has 2 mark(s) <image> for 1 picture(s)" in failure(capsys, *one, "--prompt", "<image><image><2{code}>")
    assert "has a field {name}; there are {text}" in failure(capsys, *one, "--prompt", "{name}")
    assert "a prompt of 6 tokens and an answer of up to 500, but the language model holds 96" in failure(
        capsys, *one, "--max_tokens", "500"
    )
    text = "has a field {text}, which nothing fills here; write the text there"
    assert text in failure(capsys, *one, "--prompt", "<image>{text}")
    for code, told in (("xx", "is of an unknown language; there are de, en, fr"), ("de", "asks for another language")):
        literal = ("--prompt", f"<image><2{code}>", "--language", "fr")
        assert f"the prompt's tag <2{code}> {told}" in failure(capsys, *one, *literal)
    assert "--prompt is empty; say what to ask" in failure(capsys, *one, "--prompt", " ")
    assert "language 'xx' is unknown to this model" in failure(capsys, *one, "--prompt", "hund", "--language", "xx")
    assert "top_k=5 is for sampling; set sample to true, too" in failure(capsys, *one, "--top_k", "5")
    assert "beams=0; give 1 or more" in failure(capsys, *one, "--beams", "0")
    assert "beams=100000; give 1000 or fewer" in failure(capsys, *one, "--beams", "100000")
    assert "give 0.01 to 100, and -100 to 100" in failure(capsys, *one, "--length_penalty", "1e6")
    assert "give 0.01 to 100, and -100 to 100" in failure(capsys, *one, "--repetition_penalty", "1e-39")
    assert "--language is empty; leave it out, or give one" in failure(capsys, *one, "--language", "")
    assert "--imag" in failure(capsys, str(folder), "--imag", str(pictures[0]))
    assert "batch_size is 0; give 1 or more" in failure(capsys, *one, "--batch_size", "0")
    asked = ("--prompt", "ein hund " * 60, "--language", "de")
    assert "tokens and an answer of up to 64, but the language model holds 96" in failure(capsys, *one, *asked)
    for option in ("--count", "--steps", "--guidance"):
        assert f"{option}: {folder} holds a model that writes texts; leave it out" in failure(capsys, *one, option, "3")


def test_other_folders_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert f"no folder at {tmp_path / 'none'}; name one" in failure(capsys, str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "no config.json in" in failure(capsys, str(tmp_path / "empty"))
    for kind in ("cclm", "llama"):
        (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": kind}))
        told = failure(capsys, str(tmp_path / "empty"))
        assert f"holds a model of type {kind}, which neither tells of pictures nor paints; give a folder of" in told


def test_a_language_model_that_has_been_moved_is_told(
    folder: Path, pictures: list[Path], language_models: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    one = [str(folder), "--image", str(pictures[0]), "--language", "de", *SHORT]
    main(["generate", *one, "--language_model", str(language_models("llama"))])
    assert capsys.readouterr().out.strip() == wanted(folder, [Prompt((picture(0),), "de")])[0]
    other = str(language_models("llama", seed=7))
    assert "was trained with another language model" in failure(capsys, *one, "--language_model", other)


def test_a_language_model_that_has_been_replaced_is_refused(
    build: Callable[..., Built],
    pictures: list[Path],
    language_models: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    own = shutil.copytree(language_models("llama"), tmp_path / "own")
    folder = saved(build(language_model=LanguageModelSettings(pretrained=str(own))), tmp_path / "model")
    shutil.copytree(language_models("llama", seed=7), own, dirs_exist_ok=True)
    told = failure(capsys, str(folder), "--image", str(pictures[0]), "--language", "de")
    assert f"{folder} was trained with another language model than the one that is given; give that" in told
