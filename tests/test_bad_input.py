"""What a user can get wrong, at the command line: one line that says what, where and the cure; nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.data.tokenizer import train_tokenizer
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.storage import DiskFullError, whole_file, whole_folder
from tests.data.conftest import full_disk, image_records, sentence
from tests.models.test_model import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and a model that is whole."""
    folder = tmp_path_factory.mktemp("place")
    write_shards(image_records(12), folder / "photos" / "dev")
    sentences = [sentence(language, n) for language in ("en", "de") for n in range(200)]
    processor = CCLMProcessor(train_tokenizer(sentences, folder / "tokenizer", 90), ImageSettings(image_size=32), 24)
    tiny(vocab_size=processor.vocab_size, pooling="mean").save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = [f"{sentence('en', n)}\t{sentence('de', n)}" for n in range(300)]
    (folder / "table.tsv").write_text("\n".join(["en\tde", *rows]))
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("years of work")
    (folder / "backup" / "deep").mkdir(parents=True)
    (folder / "backup" / "deep" / "1.tar").write_text("the only copy")
    return folder


def everything(folder: Path) -> dict[str, int]:
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(folder.rglob("*"))}


def complaint(arguments: list[str], capfd: pytest.CaptureFixture) -> str:
    """The one line that a command ends with."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    lines = capfd.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("cclm: "), lines
    return lines[0]


def without(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).unlink()


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(model: Path) -> None:
        stored = safetensors.torch.load_file(model / "model.safetensors")
        change(stored)
        safetensors.torch.save_file(stored, model / "model.safetensors", {"format": "pt"})

    return rewrite


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(content)


def setting(name: str, value: object) -> Callable[[Path], object]:
    def rewrite(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {name: value}))

    return rewrite


def cut(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no pretrained folder at"),
        (without("config.json"), "no config.json in"),
        (without("processor_config.json"), "no processor_config.json in"),
        (without("model.safetensors"), "no *.safetensors in"),
        (setting("backbone", None), "config or weights are damaged"),
        (setting("mask_token_id", 7), "use the tokenizer that the model was trained with"),
        (without("tokenizer.json"), "no tokenizer at"),
        (without("tokenizer_config.json"), "has no padding token"),
        (text("config.json", '{"model_type": "bert"}'), "holds a model of type bert, not cclm"),
        (text("config.json", "{"), "config.json is damaged"),
        (setting("hidden_size", -1), "config or weights are damaged"),
        (text("processor_config.json", "{}"), "processor_config.json is damaged"),
        (
            text("processor_config.json", '{"image": {"mean": [1]}, "max_tokens": 9}'),
            "processor_config.json is damaged",
        ),
        (text("processor_config.json", "{"), "processor_config.json is damaged"),
        (text("processor_config.json", '{"image": {"side": 3}, "max_tokens": 9}'), "processor_config.json is damaged"),
        (text("tokenizer.json", '{"version": "1.0"}'), "no tokenizer at"),
        (cut, "config or weights are damaged"),
        (weights(lambda stored: stored.pop("text_projection.bias")), "1 missing tensor(s), first text_projection.bias"),
        (weights(lambda stored: stored.update(more=torch.ones(1))), "1 unexpected tensor(s), first more"),
        (weights(lambda s: s.update({"text_projection.bias": torch.ones(3)})), "1 tensor(s) of another shape"),
    ],
)
def test_a_model_folder_that_is_not_whole(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture, damage: Callable[[Path], object], message: str
) -> None:
    model = Path(shutil.copytree(place / "model", tmp_path / "model"))
    damage(model)
    before = everything(tmp_path)
    command = ["evaluate", "retrieval", "--model", str(model), "--data", str(place / "photos" / "dev")]
    line = complaint([*command, "--output", str(tmp_path / "report.json")], capfd)
    assert message in line and str(model) in line and everything(tmp_path) == before


def commands(place: Path, output: Path) -> dict[str, list[str]]:
    model, photos = ["--model", str(place / "model")], str(place / "photos" / "dev")
    return {
        "build": ["data", "build", "parallel_text", "--source", str(place / "table.tsv"), "--output", str(output)],
        "tokenizer": ["data", "tokenizer", "--data", f"[{photos}]", "--output", str(output), "--vocab_size", "60"],
        "index": ["index", "build", *model, "--source", photos, "--output", str(output)],
        "evaluate": ["evaluate", "retrieval", *model, "--data", photos, "--output", str(output / "report.json")],
    }


@pytest.mark.parametrize("verb", ["build", "tokenizer", "index", "evaluate"])
def test_a_full_disk(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture, verb: str) -> None:
    command = commands(place, tmp_path / "out")[verb]
    with full_disk(200):
        line = complaint(command, capfd)
    assert "disk full while writing" in line and str(tmp_path / "out") in line and "free some space" in line
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in kept if "unfinished" not in file.parts]  # of which what is whole is not made again
    main(command)  # with room it goes through
    assert any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("verb", ["build", "tokenizer", "index"])
def test_a_folder_of_other_things_is_never_replaced(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture, verb: str
) -> None:
    before = everything(place)
    for occupied in (place / "thesis", place / "backup", place):
        line = complaint([*commands(place, occupied)[verb], *["--overwrite", "true"] * (verb == "build")], capfd)
        assert "which is not replaced; choose a new or empty folder" in line
    assert everything(place) == before


def test_an_interrupted_swap_keeps_the_former_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with whole_folder(tmp_path / "kept") as folder:
        (folder / "file").write_text("former")
    replace, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "kept") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "kept" / "file").read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_failure_that_is_not_the_disk_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="mine"), whole_file(tmp_path / "file"):
        raise ValueError("mine")
    with pytest.raises(DiskFullError, match="disk full while writing .*file"), whole_file(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))  # as of folders of the system's own
    with pytest.raises(PermissionError), whole_file(tmp_path / "file"):
        raise PermissionError(1, "Operation not permitted")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "abacus"], "no device 'abacus' here"),
        (["--device", "meta"], "no device 'meta' here"),
        (["--rerank_similarity", "1"], "rerank_similarity is given without rerank"),
        (["--rerank", "-1"], "rerank is -1"),
        (["--languages", "sw,en"], "no texts in language sw"),
        (["--data", "nowhere"], "nowhere"),
        (["--output", "/dev/null/report.json"], "report path /dev/null/report.json cannot be written"),
        (["--output", "report.txt"], "must be a file ending in .json"),
        (["--reranking", "3"], "reranking"),
    ],
)
def test_options_of_an_evaluation(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert message in complaint([*commands(place, tmp_path)["evaluate"], *options], capfd)
    assert not list(tmp_path.iterdir())


def test_a_report_replaces_reports_only(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    command, report = commands(place, tmp_path)["evaluate"], tmp_path / "report.json"
    report.write_text("{}")
    assert "report.json is no report of `cclm evaluate`" in complaint(command, capfd)
    assert report.read_text() == "{}"
    report.rename(tmp_path / "report.png")
    assert "stands where the chart would go" in complaint(command, capfd)
    (tmp_path / "report.png").unlink()
    main(command)
    main(command)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.png"]


def test_an_output_that_is_a_link_stays_one(place: Path, tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large_disk")
    main(commands(place, tmp_path / "out")["index"])
    assert (tmp_path / "out").is_symlink() and (tmp_path / "large_disk" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("  ", "the query is empty"),
        ("broken.png", "broken.png: image not readable; give another"),
        ("photo.gif", "is a file, but of none of .jpeg, .jpg, .png, .webp; convert it"),
    ],
)
def test_queries(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture, query: str, message: str) -> None:
    (tmp_path / "photo.gif").write_bytes(b"GIF89a")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    main(commands(place, tmp_path / "index")["index"])
    given = str(tmp_path / query) if query.strip() else query
    assert message in complaint(["search", str(tmp_path / "index"), given], capfd)


def test_a_local_folder_is_never_asked_of_the_hub(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="no pretrained folder at runs/nowhere"):
        CCLMModel.from_pretrained("runs/nowhere")
    with pytest.raises(ValueError, match="no pretrained folder at tests/nowhere"):
        CCLMModel.from_pretrained("tests/nowhere")
