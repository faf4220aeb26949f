"""Small pictures, and the annotation files of IGLUE as the benchmark ships them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation.iglue.conftest import bundle as bundle

# Data sets of the bundle that recipes read.
MEMBERS = tuple(f"iglue/{name}/" for name in ("XVNLI", "xGQA", "gqa", "marvl", "nlvr2", "xFlickrCO", "flickr30k"))


def picture(colour: str = "red", kind: str = "jpeg", size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


PICTURE = picture()


def named_picture(name: str) -> bytes:
    """A picture that tells under which name it was stored: what follows a jpeg's end is read over."""
    return PICTURE + name.encode()


@pytest.fixture(scope="session")
def iglue(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the benchmark's annotation files, unpacked."""
    bundle = shared / "iglue.tar.xz"
    if not bundle.is_file():
        pytest.skip("needs ../shared/iglue.tar.xz (the benchmark's own annotation files)")
    folder = tmp_path_factory.mktemp("benchmark")
    with tarfile.open(bundle) as tar:
        for member in tar:
            if member.name.removeprefix("./").startswith(MEMBERS) and member.name.endswith((".json", ".jsonl")):
                tar.extract(member, folder, filter="data")
    return folder / "iglue"
