"""A manifest that was changed, and files of deletions that are none: one line each, and nothing is unpickled."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cclm.retrieval.index import ImageIndex
from cclm.retrieval.living import IndexWriter
from cclm.retrieval.manifest import IndexManifest
from cclm.storage import file_hash
from tests.retrieval.indexed import index_in, names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """100 pictures of which 10 are deleted."""
    folder = index_in(tmp_path, names(0, 100))
    with IndexWriter(folder) as writer:
        writer.delete(keys=names(0, 10))
    return folder


def test_the_name_of_a_new_index_survives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    index_in(tmp_path, names(0, 3))
    assert tmp_path.stat().st_ino in synced and (tmp_path / "index").stat().st_ino in synced


Change = Callable[[dict[str, Any]], object]
CHANGES: list[tuple[Change, str]] = [
    (lambda m: m.update(dim="16"), "dim is '16', expected int"),
    (lambda m: m.update(dim=0), "dim 0"),
    (lambda m: m.update(dim=10**9), "dim 1000000000"),
    (lambda m: m.update(dim=True), "dim is 'True'"),
    (lambda m: m.update(version=-1), "version is '-1'"),
    (lambda m: m.update(version=2**60), "version 1152921504606846976"),
    (lambda m: m.update(version=2**80), "version is"),
    (lambda m: m.update(version=1.5), "version is '1.5', expected int"),
    (lambda m: m.update(next_id=99), "next_id 99 for 100 rows"),
    (lambda m: m.update(roots="x"), r"roots is 'x', expected list\[str\]"),
    (lambda m: m.update(roots=[1]), "roots is"),
    (lambda m: m.update(model_path=None), "model_path is 'None', expected str"),
    (lambda m: m.update(budget=[]), "budget is"),
    (lambda m: m.update(metric="l2"), "this cclm knows float32, inner_product"),
    (lambda m: m.update(normalised=1), "normalised is '1', expected bool"),
    (lambda m: m.update(segments={}), "segments is"),
    (lambda m: m.update(segments=[1]), "a segment is no object"),
    (lambda m: m.update(segments=m["segments"] * 2, next_id=200), "a segment is named twice"),
    (lambda m: m.update(more=1), "fields missing or unknown: more"),
    (lambda m: m.pop("roots"), "fields missing or unknown: roots"),
    (lambda m: m["segments"][0].update(name="../other"), "'../other' is no plain name"),
    (lambda m: m["segments"][0].update(name="/etc"), "'/etc' is no plain name"),
    (lambda m: m["segments"][0].update(name=".."), "'..' is no plain name"),
    (lambda m: m["segments"][0].update(name=""), "'' is no plain name"),
    (lambda m: m["segments"][0].update(name="a\0"), "is no plain name"),
    (lambda m: m["segments"][0]["files"].update({"../../x": "0"}), "'../../x' is no plain name"),
    (lambda m: m["segments"][0]["files"].update({"x": 5}), r"files is .*, expected dict\[str, str\]"),
    (lambda m: m["segments"][0]["files"].pop("image.index"), "lacks image.index"),
    (lambda m: m["segments"][0].update(deletions="deleted-9.npy"), "lacks deleted-9.npy"),
    (lambda m: m["segments"][0].update(rows=-5), "rows is '-5'"),
    (lambda m: m["segments"][0].update(rows="100"), "rows is '100', expected int"),
    (lambda m: m["segments"][0].update(deleted=101), "101 of 100 rows deleted"),
    (lambda m: m["segments"][0].update(deleted=0), "0 of 100 rows deleted"),
    (lambda m: m["segments"][0].update(bytes_per_vector=float("nan")), "bytes_per_vector is 'nan', expected float"),
    (lambda m: m["segments"][0].update(measured=3), "measured is no object"),
    (lambda m: m["segments"][0].update(measured={"recall": 1}), "fields missing or unknown: "),
    (lambda m: m["segments"][0].update(weights="x"), "fields missing or unknown: weights"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_every_field_is_checked(folder: Path, change: Change, message: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message) as caught:
        ImageIndex.open(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert str(path) in str(caught.value) and "cclm index build" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"schema_version": 2, "dim": NaN}', "null", '"x"', "\udcff"])
def test_what_is_no_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="cclm index build") as caught:
        ImageIndex.open(folder)
    assert "\n" not in str(caught.value)


def test_a_manifest_comes_back_as_it_was_written(folder: Path) -> None:
    manifest = IndexManifest.read(folder)
    manifest.write(folder)
    assert IndexManifest.read(folder) == manifest and manifest.rows == 90


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("/tmp/cclm-was-here").touch, ())


def packed(rows: int, deleted: int) -> np.ndarray:
    return np.packbits(np.arange(rows) < deleted, bitorder="little")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (packed(100, 11), "deletes 11 rows, the manifest says 10"),
        (packed(50, 10), r"uint8 of shape \(7,\) for 100 rows"),
        (packed(800, 10), r"uint8 of shape \(100,\) for 100 rows"),
        (packed(100, 10)[None], r"uint8 of shape \(1, 13\)"),
        (packed(100, 10).astype(np.int64), r"int64 of shape \(13,\)"),
        (np.array([Dangerous()] * 13, object), "no readable array"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999,), }", "no readable"),
        (b"no array", "no readable array"),
        (b"", "no readable array"),
        (pickle.dumps(Dangerous()), "no readable array"),
    ],
)
def test_deletions_that_are_none(folder: Path, array: np.ndarray | bytes, message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    segment = manifest["segments"][0]
    path = folder / "segments" / segment["name"] / segment["deletions"]
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError) as caught:  # as its checksum tells, or what it holds
        ImageIndex.open(folder)
    segment["files"][segment["deletions"]] = file_hash(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message) as caught:
        ImageIndex.open(folder)
    assert "\n" not in str(caught.value) and segment["deletions"] in str(caught.value)
    assert not Path("/tmp/cclm-was-here").exists()
