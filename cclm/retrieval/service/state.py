"""What the routes share: the searcher of the newest version of the index, limits, threads, and what is kept of it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cclm.errors import first_line
from cclm.retrieval.index import ImageIndex
from cclm.retrieval.manifest import MANIFEST_FILE
from cclm.retrieval.pictures import Pictures
from cclm.retrieval.searcher import Searcher
from cclm.retrieval.service.batching import Batcher, with_index
from cclm.retrieval.service.limits import Access, Limits
from cclm.retrieval.service.metrics import Metrics
from cclm.retrieval.service.thumbnails import Kept

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30  # after a version that could not be opened
PICTURE_THREADS = 4  # each may hold a picture of 64 megapixels


class Service:
    """One index being served. `roots`: where the pictures are, instead of where the index says; `judges`: whether the
    model has a matching head; `batch`: queries that are answered together at most.
    """

    def __init__(
        self,
        searcher: Searcher,
        model: str,
        judges: bool,
        limits: Limits | None = None,
        access: Access | None = None,
        roots: Sequence[Path] | None = None,
        batch: int = 64,
    ) -> None:
        self.model, self.limits, self.access = model, limits or Limits(), access or Access()
        self.judges, self._roots = judges, roots
        self.metrics = Metrics()
        self.pool = ThreadPoolExecutor(PICTURE_THREADS, "pictures")
        self.decoding = asyncio.Semaphore(PICTURE_THREADS)  # pictures that are asked with, decoded
        self.thumbnails = Kept()
        self.batcher = Batcher(self._with(searcher, searcher.index), self.metrics, batch)
        self._seen, self._again = self._stamp(), math.inf
        self._tell()

    @property
    def searcher(self) -> Searcher:
        """That of the newest version; keep it for as long as one answer takes."""
        return self.batcher.searcher

    @property
    def judging(self) -> bool:
        """Whether hits can be reranked and explained: that takes a matching head, and pictures."""
        pictures = self.searcher.pictures
        return self.judges and isinstance(pictures, Pictures) and bool(pictures.roots)

    @property
    def name(self) -> str:
        return self.searcher.index.folder.resolve().name

    async def watch(self, seconds: float) -> None:
        """Look for a new version every so often, until cancelled; a broken one is told, and leaves the old one."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.get_running_loop().run_in_executor(self.pool, self.renew)
            except Exception as error:
                self.metrics.reloads.labels("failed").inc()
                logger.error("the new version of %s is not used: %s", self.searcher.index.folder, first_line(error))

    def renew(self) -> bool:
        """Open the newest version beside the one that answers, then swap them. Returns whether there was one.

        Requests that have begun finish on the old one, which closes with the last of them.

        Errors: FileNotFoundError, ValueError where it is of another model, or cannot be opened; tried again later.
        """
        stamp, old = self._stamp(), self.searcher.index
        if stamp == self._seen and time.monotonic() < self._again:
            return False
        self._seen, self._again = stamp, time.monotonic() + RETRY_SECONDS
        new = ImageIndex.open(old.folder, old)
        self._again = math.inf
        if new.manifest == old.manifest:
            return False
        if new.manifest.model_sha256 != old.manifest.model_sha256:
            raise ValueError(
                f"its model has sha256 {new.manifest.model_sha256[:12]}, the one that answers "
                f"{old.manifest.model_sha256[:12]}; start the service again"
            )
        self.batcher.swap(self._with(self.searcher, new))
        self.metrics.reloads.labels("swapped").inc()
        self._tell()
        logger.info("version %d of %s answers from now on", new.manifest.version, new.folder)
        return True

    def close(self) -> None:
        self.batcher.close()
        self.pool.shutdown(cancel_futures=True)

    def _with(self, searcher: Searcher, index: ImageIndex) -> Searcher:
        roots = index.manifest.root_folders(index.folder) if self._roots is None else self._roots
        return with_index(searcher, index=index, pictures=Pictures(roots))

    def _stamp(self) -> tuple[int, ...]:
        try:
            facts = os.stat(self.searcher.index.folder / MANIFEST_FILE)
        except OSError:
            return ()
        return facts.st_ino, facts.st_mtime_ns, facts.st_size

    def _tell(self) -> None:
        index = self.searcher.index
        self.metrics.version.set(index.manifest.version)
        self.metrics.rows.set(len(index))


def languages(index: ImageIndex) -> list[str]:
    """Of all captions, the most frequent first."""
    found: Counter[str] = Counter()
    for segment in index.segments:
        for table in segment.metadata.tables(["captions"]):
            for chunk in table["captions"].chunks:
                assert isinstance(chunk, pa.MapArray)
                counted = pc.value_counts(chunk.keys)
                found.update({item["values"].as_py(): item["counts"].as_py() for item in counted})
    return [language for language, _ in found.most_common()]
