"""A test split is told by where its files lie, whatever name or link leads there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cclm.data.shards import list_shards
from cclm.models.choice import is_test


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
