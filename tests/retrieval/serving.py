"""A tiny index of made-up pictures, and the real service around it, for the service's tests."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.searcher import Searcher
from cclm.verbs.inputs import load
from tests.retrieval.extracting import write_tiny_model

pytest.importorskip("uvicorn", reason="the service needs cclm[serve]")

from cclm.retrieval.service.app import create_app
from cclm.retrieval.service.server import Server, address_of, listen
from cclm.retrieval.service.state import Service

PICTURES = 40
HOSTILE = "</script><script>alert(1)</script>\u2028\"'&"
CLI = "from cclm.cli import main; main()"


def encoded(number: int, kind: str = "JPEG", size: tuple[int, int] = (400, 300)) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


@dataclass(frozen=True)
class Made:
    """`entries` have ids in their order; the first half are files, the others lie in a tar."""

    folder: Path
    entries: list[Entry]
    vectors: np.ndarray  # (N, E)

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    def searcher(self) -> Searcher:
        return Searcher(ImageIndex.open(self.index), load(self.model, "cpu")[0])


def make(folder: Path) -> Made:
    model, pictures = write_tiny_model(folder / "model"), folder / "pictures"
    (pictures / "a").mkdir(parents=True)
    entries, data = [], [encoded(number) for number in range(PICTURES)]
    for number in range(PICTURES // 2):
        (pictures / "a" / f"{number}.jpg").write_bytes(data[number])
        entries.append(_entry(number, data[number], f"a/{number}.jpg", None))
    with tarfile.open(pictures / "shard.tar", "w") as tar:
        for number in range(PICTURES // 2, PICTURES):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(data[number])
            tar.addfile(info, io.BytesIO(data[number]))
    with tarfile.open(pictures / "shard.tar") as tar:
        for number, member in enumerate(tar.getmembers(), PICTURES // 2):
            entries.append(_entry(number, data[number], "shard.tar", member.offset_data))
    images = [Image.open(io.BytesIO(content)) for content in data]
    made = Made(folder, entries, load(model, "cpu")[0].embed_images(images, progress=False))
    build_index([Rows.of(entries, made.vectors)], made.index, ModelSource.of(model), [pictures], "made up")
    return made


def _entry(number: int, data: bytes, path: str, offset: int | None) -> Entry:
    captions = {"en": [HOSTILE if number == 3 else f"picture {number}"]} | ({"de": ["Bild"]} if number % 2 else {})
    date = datetime(2024, 1, 1 + number % 28)
    return Entry(f"k{number}", captions, 0, path, offset, len(data), 400, 300, date, sha256(data).hexdigest())


@contextmanager
def serving(made: Made, watch_seconds: float = 0.05, **settings: Any) -> Iterator[httpx.Client]:
    """The service on a free port, in a thread of this process; a client of it. `settings`: of `Service`."""
    started, bound = threading.Event(), listen("127.0.0.1", 0)
    service = Service(made.searcher(), "tiny", True, **settings)
    server = Server(create_app(service, watch_seconds), started.set)
    thread = threading.Thread(target=server.run, args=([bound],))
    address = address_of(bound, "127.0.0.1")
    thread.start()
    try:
        assert started.wait(60)
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def command(made: Made, *options: str, token: str = "") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`cclm serve` in a process of its own: its address, and the process, which is ended at last."""
    arguments = [sys.executable, "-c", CLI, "serve", str(made.index), "--port", "0", *options]
    environment = os.environ | {"CCLM_TOKEN": token}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, **streams, text=True, env=environment) as process:
        try:
            told = process.stdout.readline()
            found = re.search(r"http://\S+/", told)
            assert found, told + process.stderr.read()
            yield found[0], process
        finally:
            process.kill()
