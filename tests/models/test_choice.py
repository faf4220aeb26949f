"""A test split is told by where its files lie, whatever name or link leads there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cclm.data.shards import list_shards
from cclm.evaluation.adapters.open import model_hash
from cclm.models.choice import Choice, is_test
from cclm.retrieval.manifest import ModelSource
from cclm.training.finetune import Models


@pytest.mark.parametrize(
    "name",
    [
        "test",
        "test/.",
        "dev/../test",
        "test/*.tar",
        "t?st/0*",
        "{test,test}/000000.tar",
        "heldout",
        "1k_test",
        "marvl-id",
    ],
)
def test_test_splits(tmp_path: Path, name: str) -> None:
    for folder in ("test", "1k_test", "marvl-id", "dev"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "000000.tar").touch()
    (tmp_path / "heldout").symlink_to(tmp_path / "test")
    assert is_test(list_shards(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["dev", "train", "marvl-id_train10x2", "latest"])
def test_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "000000.tar").touch()
    assert not is_test(list_shards(str(tmp_path / name)))


def test_a_model_is_the_same_wherever_the_data_lie_that_chose_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")
        Choice("mean_recall", 50.0, 100, f"/data/of/{name}/dev", False).write(folder)
    ways = (model_hash, lambda path: ModelSource.of(path).sha256, Models(tmp_path, torch.device("cpu"))._hash)
    for way in ways:
        first = way(tmp_path / "one")
        assert first == way(tmp_path / "two")
        assert len(first) == 64
    (tmp_path / "two" / "config.json").write_text("{ }")
    assert model_hash(tmp_path / "one") != model_hash(tmp_path / "two")
