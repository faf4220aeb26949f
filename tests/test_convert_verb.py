"""`cclm convert` at the command line: what it tells, what it writes, and what it refuses in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertModel

from cclm.cli import main
from cclm.data.tokenizer import train_tokenizer
from cclm.models.model import CCLMConfig, CCLMModel
from tests.data.conftest import sentence
from tests.models.checkpoints import Shape, drawn, oracle, released
from tests.test_bad_input import complaint, everything, full_disk

TEXT = {"vocab_size": 97, "max_positions": 66, "text_layers": 2, "fusion_layers": 2, "num_heads": 4}
SWIN = Shape("", True, 64, (1, 2, 4, 8), (2, 2, 2, 2), 64, TEXT | {"embedding_size": 16}, {"window_size": 2})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a tokenizer that fits it and one that does not."""
    folder = tmp_path_factory.mktemp("place")
    texts = [sentence(language, n) for language in ("en", "de") for n in range(200)]
    size = len(train_tokenizer(texts, folder / "tokenizer", 90))
    train_tokenizer([*texts, "".join(map(chr, range(0x4E00, 0x4E80)))], folder / "longer", 200)
    released(drawn(SWIN.config(vocab_size=size)), folder / "cclm.th")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("years of work")
    return folder


@pytest.fixture
def source(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(place / "cclm.th", tmp_path / "cclm.th"))


def converted(*arguments: object, capfd: pytest.CaptureFixture) -> list[str]:
    """The lines that a conversion prints; nothing on standard error."""
    capfd.readouterr()
    main(["convert", *map(str, arguments)])
    told = capfd.readouterr()
    assert not told.err
    return told.out.splitlines()


# -- what it tells and writes --------------------------------------------------------------------------------------


def test_it_tells_what_it_found(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    first, counts, *rest = converted(source, tmp_path / "out", capfd=capfd)
    assert first.startswith("CCLM-3M/4M: images of 64 pixels, 2 text and 2 fusion layers of width 64, vocabulary")
    assert first.endswith("heads: match, mlm, box")
    model = CCLMModel.from_pretrained(tmp_path / "out")
    assert counts == f"{len(model.state_dict())} filled, 0 newly initialised, 12 left over"
    assert rest[0] == "  left over: 12 x computed, not learned"
    assert rest[1] == "  guessed: num_heads 4, from the image encoder's; --num-heads says otherwise"
    assert rest[2:] == [
        f"{tmp_path / 'out'}: written",
        "it holds no tokenizer: add the model's own with --tokenizer (CCLM's is xlm-roberta-large)",
    ]


def test_every_tensor_can_be_listed(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    lines = converted(source, tmp_path / "out", "--list", "--dry-run", capfd=capfd)
    names = torch.load(source, weights_only=True)["model"]
    left = [line for line in lines if line.startswith("left over  ")]
    filled = [line.split()[1::2] for line in lines if line.startswith("filled ")]
    assert len({ours for _, ours in filled}) == int(lines[1].split()[0])
    # Every tensor of the file can be ticked off, once.
    assert sorted([line.split()[2].rstrip(":") for line in left] + [theirs for theirs, _ in filled]) == sorted(names)
    assert lines[-1] == "dry run: nothing is written" and not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    before = everything(tmp_path)
    converted(source, tmp_path / "deep" / "out", "--dry-run", capfd=capfd)
    assert everything(tmp_path) == before
    converted(source, tmp_path / "out", capfd=capfd)
    before = everything(tmp_path)
    converted(tmp_path / "out", tmp_path / "deep" / "back.th", "--to-original", "--dry-run", capfd=capfd)
    assert everything(tmp_path) == before


def test_the_folder_is_ready_for_use(place: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Embeddings, scores, a card, and modules.json for sentence-transformers."""
    out = tmp_path / "out"
    lines = converted(source, out, "--tokenizer", place / "tokenizer", "--image-size", 128, capfd=capfd)
    assert "  resized: 8 relative-position tables" in lines and lines[-1] == f"{out}: written"
    model = CCLMModel.from_pretrained(out).eval()
    processor = model.processor
    assert (processor.image_size, processor.max_tokens, processor.max_words) == (128, 66, 80)
    assert processor.text_cleaning == "caption" and processor.settings.mean[0] == pytest.approx(0.48145466)
    picture = Image.new("RGB", (40, 30), "red")
    assert model.embed_images([picture]).shape == (1, 16) and model.embed_texts(["a dog"]).shape == (1, 16)
    assert 0 < model.score(picture, ["a dog"])[0] < 1
    assert json.loads((out / "modules.json").read_text())[0]["type"] == "cclm.models.sentence.CrossViewModule"
    card = (out / "README.md").read_text()
    assert "license: unknown" in card and "language:" not in card.split("---")[1]
    assert "Converted from `cclm.th`, a CCLM-3M/4M checkpoint." in card and "at 128 pixels" in card


def test_without_a_tokenizer_the_settings_are_kept(
    place: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    converted(source, tmp_path / "out", capfd=capfd)
    assert not (tmp_path / "out" / "modules.json").exists()
    model = CCLMModel.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="`cclm convert` it with --tokenizer"):
        _ = model.processor
    from cclm.models.processor import CCLMProcessor

    processor = CCLMProcessor.from_pretrained(tmp_path / "out", str(place / "tokenizer"))
    assert processor.text_cleaning == "caption" and processor.image_size == 64


def test_a_folder_is_replaced_by_a_new_conversion(
    place: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    converted(source, tmp_path / "out", "--tokenizer", place / "tokenizer", capfd=capfd)
    converted(source, tmp_path / "out", "--num-heads", 2, capfd=capfd)
    assert CCLMModel.from_pretrained(tmp_path / "out").config.num_heads == 2
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_there_and_back(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    converted(source, tmp_path / "out", capfd=capfd)
    before = torch.load(source, weights_only=True)["model"]
    lines = converted(tmp_path / "out", source, "--to-original", capfd=capfd)  # the checkpoint itself is replaced
    assert lines == [f"{source}: {len(before)} tensors in the released layout"]
    after = torch.load(source, weights_only=True)["model"]
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_a_finetuned_form_says_which_heads_it_has(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    lines = converted(oracle("cclm_swin/finetuned_nlvr"), tmp_path / "out", capfd=capfd)
    assert lines[0].endswith("heads: classify") and "6 text and 6 fusion layers" in lines[0]


# -- what it refuses: one line, exit status 2, nothing left behind ---------------------------------------------------


class Harm:
    """Makes a file where its pickle is run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


def state(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    stored = torch.load(file, weights_only=True)
    change(stored["model"])
    torch.save(stored, file)


def without(*parts: str) -> Callable[[Path], object]:
    def remove(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return lambda file: state(file, remove)


def having(**tensors: Tensor) -> Callable[[Path], object]:
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda file: state(file, lambda weights: weights.update(named))


def saved(content: object, **options: bool) -> Callable[[Path], object]:
    return lambda file: torch.save(content, file, **options)


def cut(share: float) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def bytes_of(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


def old_and_cut(file: Path) -> None:
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    cut(0.5)(file)


def harmful(**options: bool) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        torch.save({"model": torch.load(file, weights_only=True)["model"], "config": Harm(file.parent / "ran")}, file)

    def write_old(file: Path) -> None:
        content = {"model": torch.load(file, weights_only=True)["model"], "config": Harm(file.parent / "ran")}
        torch.save(content, file, _use_new_zipfile_serialization=False)

    return write_old if options else write


def bert(file: Path) -> None:
    config = BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32, vocab_size=90)
    torch.save(BertModel(config).state_dict(), file)


TABLE = "vision_encoder__layers__0__blocks__0__attn__relative_position_bias_table"
DECODER = "text_encoder__cls__predictions__decoder__weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(0.5), "is cut, damaged or no weight file"),
        (cut(0.0), "is cut, damaged or no weight file (EOFError); fetch it again"),
        (old_and_cut, "is cut, damaged or no weight file (unexpected EOF"),
        (
            harmful(),
            "holds code to run (posix.system), not only tensors; if you trust whoever wrote it, convert it with",
        ),
        (harmful(old=True), "holds code to run (posix.system)"),
        (bytes_of(pickle.dumps({"model": Harm(Path("ran"))})), "is a pickle that torch.save did not write"),
        (bytes_of(b'{"model": {}}'), "no weight file (neither torch's format nor safetensors); fetch it again"),
        (bytes_of(b"<!DOCTYPE html>"), "no weight file (neither torch's format nor safetensors); fetch it again"),
        (Path.unlink, "no weight file at"),
        (saved([1, 2]), "holds more than tensors, or none"),
        (saved({}), "holds more than tensors, or none"),
        (saved({"model": {"a": 3}}), "holds more than tensors, or none"),
        (
            lambda file: saved(timm.create_model("resnet10t").state_dict())(file),
            "it has nothing of one, such as vision_",
        ),
        (bert, "the text weights have 2 types of tokens, as BERT's, not XLM-R's one"),
        (without("text_encoder"), "nearest to CCLM-3M/4M, but has no text_encoder.embeddings.word_embeddings.weight, "),
        (without("vision_encoder"), "nearest to CCLM-3M/4M, but has no vision_encoder.patch_embed.proj.weight, "),
        (
            without("layer.1.output.dense.bias"),
            "1 tensor(s) of a CCLM-3M/4M checkpoint are missing, first text_encoder.",
        ),
        (without("text_proj"), "nothing explains temp in a CCLM-3M/4M checkpoint"),
        (without("position_embeddings"), "a CCLM-3M/4M checkpoint without"),
        (having(temp=torch.tensor(-0.07)), "temp is -0.07"),
        (having(extra__weight=torch.ones(1)), "nothing explains extra.weight in a CCLM-3M/4M checkpoint"),
        (having(text_proj__bias=torch.ones(3)), "text_proj.bias is (3,) and not (16,); fetch it again"),
        (having(**{TABLE: torch.ones(10, 1)}), "a relative-position table has 10 rows, of no square window"),
        (having(**{DECODER: torch.ones(97, 64)}), "fetch it again"),
    ],
)
def test_a_checkpoint_that_is_not_whole(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture, damage: Callable[[Path], object], message: str
) -> None:
    damage(source)
    before = everything(tmp_path)
    line = complaint(["convert", str(source), str(tmp_path / "out")], capfd)
    assert message in line and str(source) in line and everything(tmp_path) == before
    assert not Path("ran").exists()


def test_code_runs_only_for_who_asks_for_it(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    harmful()(source)
    complaint(["convert", str(source), str(tmp_path / "out")], capfd)
    assert not (tmp_path / "ran").exists()
    converted(source, tmp_path / "out", "--trust-pickle", capfd=capfd)
    assert (tmp_path / "ran").exists() and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "100"], "image size 100 is no multiple of 32, a patch of the last stage; try 96"),
        (["--image-size", "100000"], "image size 100000 is"),
        (["--image-size", "0"], "image size 0 is no multiple of 32"),
        (["--image-size", "large"], "Got value: large"),
        (["--num-heads", "5"], "hidden_size 64 does not divide into num_heads 5"),
        (["--num-heads", "0"], "num_heads is 0; give 1 or more"),
        (["--tokenizer", "data/nowhere"], "no tokenizer at data/nowhere"),
        (["--tokenizer", "{place}/longer"], "use the tokenizer that the model was trained with"),
        (["--text", "{place}/tokenizer"], "has its own text layers; leave --text out"),
        (["--text-weights", "x"], "text-weights"),
    ],
)
def test_options(
    place: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    before = everything(tmp_path)
    given = [option.format(place=place) for option in options]
    assert message in complaint(["convert", str(source), str(tmp_path / "out"), *given], capfd)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("cclm.th", "would replace"),
        ("other.txt", "is a file; choose a new or empty folder"),
        ("{place}/thesis", "holds chapter.tex, which is not replaced"),
        ("lm", "lm holds a model of another kind, which is not replaced; choose another"),
        (".", "would replace"),
        ("/dev/null/out", "cannot be written: /dev/null is no folder that you may write to"),
    ],
)
def test_outputs(place: Path, source: Path, capfd: pytest.CaptureFixture, output: str, message: str) -> None:
    source.with_name("other.txt").write_text("mine")
    source.with_name("lm").mkdir()
    (source.with_name("lm") / "config.json").write_text('{"model_type": "llama"}')
    before = everything(source.parent), everything(place)
    target = source.parent / output.format(place=place)
    assert message in complaint(["convert", str(source), str(target)], capfd)
    assert (everything(source.parent), everything(place)) == before


def test_a_source_folder_is_never_its_own_output(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    config = BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32, vocab_size=90)
    BertModel(config).save_pretrained(tmp_path / "bert")
    before = everything(tmp_path)
    for output in (tmp_path / "bert", tmp_path / "bert" / ".." / "bert"):
        assert "would replace" in complaint(["convert", str(tmp_path / "bert"), str(output)], capfd)
    assert everything(tmp_path) == before


def test_a_full_disk(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with full_disk(20_000):
        line = complaint(["convert", str(source), str(tmp_path / "out")], capfd)
    assert "disk full while writing" in line and not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cclm.th"]
    converted(source, tmp_path / "out", capfd=capfd)
    with full_disk(20_000):
        line = complaint(["convert", str(tmp_path / "out"), str(tmp_path / "back.th"), "--to-original"], capfd)
    assert "disk full while writing" in line and not (tmp_path / "back.th").exists()


def pop(name: str) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        stored = safetensors.torch.load_file(folder / "model.safetensors")
        del stored[name]
        safetensors.torch.save_file(stored, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def told(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        stored = json.loads((folder / "original.json").read_text())
        change(stored)
        (folder / "original.json").write_text(json.dumps(stored))

    return rewrite


def another_model(folder: Path) -> None:
    shutil.rmtree(folder)
    small = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "vocab_size": 40, "max_positions": 20}
    layers = {"text_layers": 1, "fusion_layers": 1, "backbone": "test_resnet", "image_size": 32}
    CCLMModel(CCLMConfig(**small, **layers)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pop("text_projection.bias"), "1 missing tensor(s), first text_projection.bias"),
        (lambda folder: (folder / "original.json").write_text("{"), "original.json is damaged"),
        (lambda folder: (folder / "original.json").write_text("[]"), "original.json is damaged"),
        (told(lambda stored: stored["tensors"].update(temp="float99")), "original.json is damaged"),
        (told(lambda stored: stored["tensors"].update({"more.weight": "float32"})), "no tensor of ours is more.weight"),
        (shutil.rmtree, "no pretrained folder at"),
        (another_model, "is of no released family; only converted models, and those trained from them, go back"),
    ],
)
def test_a_folder_that_does_not_go_back(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture, damage: Callable[[Path], object], message: str
) -> None:
    converted(source, tmp_path / "out", capfd=capfd)
    damage(tmp_path / "out")
    before = everything(tmp_path)
    line = complaint(["convert", str(tmp_path / "out"), str(tmp_path / "back.th"), "--to-original"], capfd)
    assert message in line and everything(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("out", [], "is a folder; give the file to write, such as"),
        ("notes.txt", [], "exists and is no checkpoint; give a new file, such as notes.th"),
        ("/dev/null/back.th", [], "cannot be written: /dev/null is no folder that you may write to"),
        ("back.th", ["--image-size", "64"], "--image-size is for the way to a pretrained folder"),
        ("back.th", ["--tokenizer", "x"], "--tokenizer is for the way to a pretrained folder"),
    ],
)
def test_the_way_back(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture, output: str, options: list[str], message: str
) -> None:
    converted(source, tmp_path / "out", capfd=capfd)
    (tmp_path / "notes.txt").write_text("mine")
    before = everything(tmp_path)
    command = ["convert", str(tmp_path / "out"), str(tmp_path / output), "--to-original", *options]
    assert message in complaint(command, capfd)
    assert everything(tmp_path) == before


def test_the_wrong_way(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Each way names the other one."""
    converted(source, tmp_path / "out", capfd=capfd)
    line = complaint(["convert", str(tmp_path / "out"), str(tmp_path / "again")], capfd)
    assert "is a pretrained folder already; for the way back, add --to-original" in line
    line = complaint(["convert", str(source), str(tmp_path / "back.th"), "--to-original"], capfd)
    assert "is a file; --to-original reads a pretrained folder" in line
    assert not (tmp_path / "again").exists() and not (tmp_path / "back.th").exists()
