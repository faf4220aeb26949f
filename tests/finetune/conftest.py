"""Sixty-four real texts of IGLUE with drawn pictures, checkpoints as released, and the shipped configs made tiny."""

from __future__ import annotations

import json
import shlex
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cclm.cli import main
from cclm.data.tokenizer import train_tokenizer
from tests.training.conftest import Config, changed

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
ITEMS = 64
CANDIDATES = 128  # answers that the configs spell to the end
CAPTIONS = 1  # of a picture's five
VOCABULARY = 97  # of the recorded checkpoints

# What makes a published run tiny: no more of a model than learns 64 items by heart, which augmentation would hinder.
TINY = {
    "trainer__accelerator": "cpu",
    "trainer__devices": 1,
    "trainer__strategy": "auto",
    "trainer__precision": "32-true",
    "trainer__logger": False,
    "trainer__enable_progress_bar": False,
    "trainer__enable_model_summary": False,
    "processor__max_tokens": 48,
    "processor__image__image_size": 64,
    "processor__image__crop_scale": [1.0, 1.0],
    "processor__image__flip": 0.0,
    "processor__image__augment": False,
    "model__network__config__dropout": 0.0,
    "model__network__config__attention_dropout": 0.0,
    "model__optimizer__lr": 3e-4,
    "model__optimizer__warmup_steps": 10,
    "model__optimizer__clip_norm": 1.0,
    "data__loader__workers": 0,
    "data__loader__pin_memory": False,
}

MEMBERS = {
    "XVNLI/annotations/en/test.jsonl",
    "XVNLI/annotations/ar/train_48.jsonl",
    "gqa/annotations/testdev.json",
    "gqa/annotations/trainval_ans2label.json",
    "marvl/zero_shot/annotations/marvl-id.jsonl",
    "flickr30k/annotations/test_ann.jsonl",
}


@pytest.fixture(scope="session")
def iglue(shared: Path) -> dict[str, str]:
    """The benchmark's own files, by name: their text."""
    bundle = shared / "iglue.tar.xz"
    if not bundle.is_file():
        pytest.skip("needs ../shared/iglue.tar.xz (the benchmark's own annotation files)")
    found = {}
    with tarfile.open(bundle) as tar:
        for member in tar:
            name = member.name.removeprefix("./").removeprefix("iglue/")
            if name in MEMBERS:
                handle = tar.extractfile(member)
                assert handle is not None
                found[name] = handle.read().decode()
    assert set(found) == MEMBERS
    return found


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()] if text.startswith("{") else json.loads(text)


def balanced(found: list[dict[str, Any]], label: Callable[[dict[str, Any]], Any], most: int) -> list[dict[str, Any]]:
    """The first rows with no label more than `most` times."""
    seen: Counter[Any] = Counter()
    kept = []
    for row in found:
        seen[label(row)] += 1
        if seen[label(row)] <= most:
            kept.append(row)
    return kept


def answer(row: dict[str, Any]) -> str:
    """The only answer to one of GQA's questions."""
    (only,) = row["label"]
    return only


def draw_picture(path: Path, number: int) -> None:
    """A picture like no other: a coarse pattern of colours, drawn from its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST).save(path)


def write_lines(path: Path, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def draw_pictures(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(dict.fromkeys(names)):
        draw_picture(folder / name, number)


def head_commands(name: str) -> list[list[str]]:
    """The commands that a config's head comment prints, each as its words after `cclm`."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    head = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    joined = "\n".join(head).replace("\\\n", "")
    return [shlex.split(line, comments=True)[1:] for line in joined.splitlines() if line.startswith("   cclm ")]


@dataclass
class Bench:
    """A folder that stands for a user's clone: raw data, checkpoints, and the commands of a config's head in it."""

    folder: Path
    tokenizer: Path

    def run(self, command: list[str]) -> None:
        """A printed command with our tokenizer and image size."""
        here = {"xlm-roberta-large": str(self.tokenizer), "xlm-roberta-base": str(self.tokenizer), "384": "64"}
        main([here.get(word, word) for word in command])

    def prepare(self, name: str) -> None:
        for command in head_commands(name):
            output = command[2] if command[0] == "convert" else command[-1]
            if command[0] in ("convert", "data") and not Path(output).exists():
                self.run(command)

    def fit(self, name: str, *arguments: str, steps: int, **changes: Any) -> None:
        """The shipped config itself, but for sizes and what helps to learn by heart."""
        (stream,) = read(name)["data"]["streams"]
        every = max(1, steps // 2)
        sizes = {"trainer__max_steps": steps, "data__loader__steps_per_epoch": every}
        sizes |= {f"data__streams__{stream}__batch_size": 16, f"data__streams__{stream}__bucket": 2}
        main(["fit", "--config", self.write(name, TINY | sizes | changes), *arguments])

    def write(self, name: str, changes: Config) -> str:
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(changed(read(name), **changes)))
        return str(file)

    def evaluate(self, name: str) -> dict[str, Any]:
        (command,) = (command for command in head_commands(name) if command[0] == "evaluate")
        self.run(command)
        return json.loads(Path(command[command.index("--output") + 1]).read_text())


def read(name: str) -> Config:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def xvnli(raw: Path, iglue: dict[str, str]) -> list[str]:
    """Sentences about Flickr30K's pictures with their labels; training, choice and test are of the same 64."""
    kept = balanced(rows(iglue["XVNLI/annotations/en/test.jsonl"]), lambda row: row["gold_label"], 22)
    kept = [row for row in kept if row["gold_label"] != "-"][:ITEMS]
    for split in ("train", "dev", "test"):
        write_lines(raw / f"annotations/en/{split}.jsonl", kept)
    shots = rows(iglue["XVNLI/annotations/ar/train_48.jsonl"])
    for split in ("train_48", "test"):
        write_lines(raw / f"annotations/ar/{split}.jsonl", shots)
    draw_pictures(raw, [f"{row['Flikr30kID']}.jpg" for row in (*kept, *shots)])
    return [row["sentence2"] for row in kept]


def xgqa(raw: Path, iglue: dict[str, str]) -> list[str]:
    """Questions that GQA asks of several pictures, so that none is answered without looking."""
    found = rows(iglue["gqa/annotations/testdev.json"])
    asked = Counter(row["sent"] for row in found)
    found = [row for row in found if asked[row["sent"]] >= 4]
    said = Counter(answer(row) for row in found)
    kept = balanced([row for row in found if said[answer(row)] >= 8], answer, 8)[:ITEMS]
    for split in ("train", "valid"):
        (raw / "gqa/annotations").mkdir(parents=True, exist_ok=True)
        (raw / f"gqa/annotations/{split}.json").write_text(json.dumps(kept))
    # The first token of an answer, by which candidates are kept, is hardly more than a letter in a vocabulary of 97.
    listed = list(dict.fromkeys([*map(answer, kept), *json.loads(iglue["gqa/annotations/trainval_ans2label.json"])]))
    numbered = {name: number for number, name in enumerate(sorted(listed[:CANDIDATES]))}
    (raw / "gqa/annotations/trainval_ans2label.json").write_text(json.dumps(numbered))
    test = {
        row["question_id"]: {"imageId": row["img_id"], "question": row["sent"], "answer": answer(row)} for row in kept
    }
    (raw / "xGQA/annotations/few_shot/en").mkdir(parents=True)
    (raw / "xGQA/annotations/few_shot/en/test.json").write_text(json.dumps(test))
    draw_pictures(raw, [f"{row['img_id']}.jpg" for row in kept])
    return [text for row in kept for text in (row["sent"], *row["label"])]


def nlvr2(raw: Path, iglue: dict[str, str]) -> list[str]:
    """MaRVL's sentences, each about four pairs of pictures of which two make it true, in NLVR2's form and MaRVL's."""
    kept = rows(iglue["marvl/zero_shot/annotations/marvl-id.jsonl"])[:ITEMS]
    write_lines(raw / "marvl/marvl-id.jsonl", kept)
    for split in ("train", "dev", "test"):
        write_lines(
            raw / f"nlvr2/{split}.jsonl",
            [
                {"identifier": f"{split}-{n}-0-0", "sentence": row["caption"], "label": str(row["label"])}
                for n, row in enumerate(kept)
            ],
        )
        pictures = [f"{split}-{n}-0-img{side}.png" for n in range(len(kept)) for side in (0, 1)]
        draw_pictures(raw / "nlvr2", pictures)
    sides = [f"id/images/{row['concept']}/{row[side]}" for row in kept for side in ("left_img", "right_img")]
    assert len(sides) == 2 * ITEMS
    for number, name in enumerate(sides):
        draw_picture(raw / "marvl" / name, number)
    return [row["caption"] for row in kept]


def flickr30k(raw: Path, iglue: dict[str, str]) -> list[str]:
    kept = rows(iglue["flickr30k/annotations/test_ann.jsonl"])[:ITEMS]
    kept = [row | {"sentences": row["sentences"][:CAPTIONS]} for row in kept]
    for split in ("train", "valid", "test"):
        write_lines(raw / f"{split}_ann.jsonl", kept)
    draw_pictures(raw, [row["img_path"] for row in kept])
    return [text for row in kept for text in row["sentences"]]


SOURCES = {"xvnli": xvnli, "xgqa": xgqa, "nlvr2": nlvr2, "flickr30k": flickr30k}


@pytest.fixture(scope="session")
def whole_clone(shared: Path, iglue: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Raw data and released checkpoints where the heads of the configs expect them."""
    folder = tmp_path_factory.mktemp("clone")
    texts = [text for name, source in SOURCES.items() for text in source(folder / "raw" / name, iglue)]
    (folder / "raw/xflickrco").symlink_to(folder / "raw/flickr30k")
    (folder / "weights").mkdir()
    for family, name in (("cclm_swin", "cclm_3m_epoch_29"), ("cclm_x2vlm", "cclm_x2vlm_base")):
        checkpoint = shared / "oracle" / family / "pretrain.th"
        if not checkpoint.is_file():
            pytest.skip(f"needs ../shared/oracle/{family}/pretrain.th (a recorded checkpoint)")
        (folder / "weights" / f"{name}.th").symlink_to(checkpoint)
    train_tokenizer(texts, folder / "tokenizer", VOCABULARY, lowercase=True)
    return Bench(folder, folder / "tokenizer")


@pytest.fixture
def clone(whole_clone: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The reader stands in it; what commands have made there stays for the next test."""
    monkeypatch.chdir(whole_clone.folder)
    return whole_clone
