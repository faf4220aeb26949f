"""Queries that arrive while others are answered are answered together: one pass of the model, one search. What is to be
reranked waits for its turn after that, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from cclm.retrieval.index import Hit, ImageIndex
from cclm.retrieval.query import Query
from cclm.retrieval.searcher import Searcher
from cclm.retrieval.service.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The hits of a query, and the index they are from: another one may have taken its place."""

    hits: list[Hit]
    index: ImageIndex


@dataclass(eq=False)
class _Job:
    query: Query
    k: int
    where: str | None
    rerank: int
    future: asyncio.Future[Found]

    @property
    def nearest(self) -> int:
        """How many hits are looked for: those to rerank may be more than are wanted at last."""
        return max(self.k, self.rerank)


class Batcher:
    """One thread that answers what has been asked meanwhile, and one that reranks; nobody waits for a batch to fill.

    `searcher` may be replaced (`swap`): a batch is answered by the one that was there when it began.
    """

    def __init__(self, searcher: Searcher, metrics: Metrics, size: int = 64) -> None:
        self.searcher, self._metrics, self._size = searcher, metrics, size
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._found: SimpleQueue[tuple[_Job, Searcher, Found] | None] = SimpleQueue()  # to be reranked
        self._closing = False
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("searching", self._work), ("reranking", self._rerank))
        ]
        for thread in self._threads:
            thread.start()
        metrics.queued.set_function(lambda: self._jobs.qsize() + self._found.qsize())

    def search(self, query: Query, k: int, where: str | None = None, rerank: int = 0) -> asyncio.Future[Found]:
        """Errors, in the future: as of `Searcher.search` and `ImageIndex.select`. One that is cancelled is dropped."""
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(query, k, where, rerank, future))
        return future

    def swap(self, searcher: Searcher) -> None:
        self.searcher = searcher

    def close(self) -> None:
        self._closing = True
        self._jobs.put(None)
        self._found.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while len(jobs) < self._size:
                try:
                    further = self._jobs.get_nowait()
                except Empty:
                    break
                if further is None:
                    self._jobs.put(None)  # for the next turn
                    break
                jobs.append(further)
            self._answer([job for job in jobs if not job.future.cancelled()])

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        self._metrics.batch.observe(len(jobs))
        searcher = self.searcher
        groups: dict[str | None, list[_Job]] = {}  # one search each: its biggest k serves all
        for job in jobs:
            groups.setdefault(job.where, []).append(job)
        for group in groups.values():
            answers = []
            for job, answer in zip(group, _answers(searcher, group), strict=True):
                if job.rerank and isinstance(answer, Found):
                    self._found.put((job, searcher, answer))
                else:
                    answers.append((job, answer))
            group[0].future.get_loop().call_soon_threadsafe(_hand_out, answers)

    def _rerank(self) -> None:
        while (waiting := self._found.get()) is not None:
            job, searcher, found = waiting

            def stop(job: _Job = job) -> bool:
                return self._closing or job.future.cancelled()

            answer: Found | Exception
            try:
                first = searcher.reranked(job.query, found.hits[: job.rerank], stop)
                answer = Found([*first, *found.hits[job.rerank :]][: job.k], found.index)
            except Exception as error:
                answer = error
            if not stop():
                job.future.get_loop().call_soon_threadsafe(_hand_out, [(job, answer)])


def _answers(searcher: Searcher, jobs: Sequence[_Job]) -> list[Found | Exception]:
    """An error is told to whom it belongs: halves are asked again until one is left."""
    first, index = jobs[0], searcher.index
    k = min(max(job.nearest for job in jobs), max(len(index), 1))
    try:
        if reranking := [job.query for job in jobs if job.rerank]:
            searcher.check_rerank(reranking)
        among = index.select(first.where) if first.where else None
        found = searcher.search([job.query for job in jobs], k, among)
    except Exception as error:
        if len(jobs) == 1:
            return [error]
        half = len(jobs) // 2
        return _answers(searcher, jobs[:half]) + _answers(searcher, jobs[half:])
    return [Found(hits[: job.nearest], index) for job, hits in zip(jobs, found, strict=True)]


def _hand_out(answers: Iterable[tuple[_Job, Found | Exception]]) -> None:
    for job, answer in answers:
        if job.future.done():  # cancelled meanwhile
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)


def with_index(searcher: Searcher, **changes: object) -> Searcher:
    """The same searcher, what it remembers included, with another index or other pictures."""
    other = copy.copy(searcher)
    for name, value in changes.items():
        setattr(other, name, value)
    return other
