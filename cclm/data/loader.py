"""Streams -> one PairBatch of every stream per step, resumable to the very next unseen sample.

Every worker builds whole steps and sends with each the cursor that follows it; the consumer keeps the newest cursor of
every worker, and which worker is next.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cclm.data.batches import BatchStream, StreamConfig
from cclm.data.readers import ImageReader, Processor
from cclm.data.stream import Share
from cclm.types import Batch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepBatch:
    """What one training step consumes. `skipped`: samples this worker has left out since the run began, by reason."""

    batches: dict[str, Batch]
    cursor: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = {name: batch.to(device, non_blocking=non_blocking) for name, batch in self.batches.items()}
        return replace(self, batches=moved)

    def pin_memory(self) -> Self:
        return replace(self, batches={name: batch.pin_memory() for name, batch in self.batches.items()})


@dataclass(frozen=True)
class _StepFailure:
    """An error of the data on its way out of a worker: torch would bury its one line in a traceback."""

    message: str


class PairLoader(IterableDataset):
    """One PairBatch of every stream per step, without end. Errors: ValueError, OSError of what a config names wrongly.

    `images` reads the image side (None where no stream has one); `resume` is a LoaderProgress.state_dict().
    """

    def __init__(
        self,
        streams: Mapping[str, StreamConfig],
        processor: Processor,
        images: ImageReader | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        if not streams:
            raise ValueError("there are no streams; give at least one under a name of its own")
        self._streams = streams
        self._processor = processor
        self._images = images
        self._seed = seed
        self._share = Share(rank, world_size)
        self._resume = resume
        for name, stream in streams.items():  # a wrong folder or language must fail here, in the main process
            BatchStream(name, stream, processor, images, seed, self._share)

    def __iter__(self) -> Iterator[StepBatch | _StepFailure]:
        info = get_worker_info()
        if info is None:
            yield from self._steps(0, 1)
            return
        try:
            yield from self._steps(info.id, info.num_workers)
        except (ValueError, OSError) as error:
            _log.debug("worker %d stops", info.id, exc_info=True)
            yield _StepFailure(str(error))

    def _steps(self, worker: int, workers: int) -> Iterator[StepBatch]:
        state = self._resume or {}
        self._check_resume(workers)
        # The next unseen step was due from worker `next`; the DataLoader always asks its first worker first.
        worker = (worker + state.get("next", 0)) % workers
        share = replace(self._share, worker=worker, workers=workers)
        streams = {
            name: BatchStream(name, config, self._processor, self._images, self._seed, share)
            for name, config in self._streams.items()
        }
        for name, saved in state.get("cursors", {}).get(str(worker), {}).items():
            try:
                streams[name].load_state_dict(saved)
            except (KeyError, TypeError):
                raise ValueError(
                    f"stream {name}: the saved data position is not of such shards; resume with those of the first run"
                ) from None
        while True:
            yield self._step(streams, share)  # no name for it here: the old batch must go before the next is made

    def _step(self, streams: Mapping[str, BatchStream], share: Share) -> StepBatch:
        batches = {name: next(stream) for name, stream in streams.items()}
        cursor = {
            "worker": share.worker,
            "workers": share.workers,
            "world_size": share.world_size,
            "streams": {name: stream.state_dict() for name, stream in streams.items()},
        }
        skipped = sum((stream.skipped for stream in streams.values()), Counter())
        return StepBatch(batches, cursor, dict(skipped))

    def _check_resume(self, workers: int) -> None:
        state = self._resume
        if not state or not state["cursors"]:
            return
        now = {"workers": workers, "world_size": self._share.world_size}
        for what, value in now.items():
            if state[what] != value:
                raise ValueError(
                    f"the saved data position was made with {what}={state[what]}, now it is {value};"
                    f" resume with {what}={state[what]}, or start the data anew by leaving the position out"
                )
        for cursor in state["cursors"].values():
            if set(cursor) != set(self._streams):
                raise ValueError(
                    f"the saved data position is of streams {sorted(cursor)}, the config has"
                    f" {sorted(self._streams)}; resume with the streams of the first run"
                )


class LoaderProgress:
    """What has been consumed: feed it every step, save its state, hand that to the next PairLoader as `resume`."""

    def __init__(self) -> None:
        self._workers = self._world_size = 1
        self._next = 0
        self._cursors: dict[str, dict[str, Any]] = {}
        self._skipped: dict[str, dict[str, int]] = {}

    @property
    def skipped(self) -> Counter[str]:
        """Samples left out so far, by reason, over all workers of this rank."""
        return sum((Counter(counts) for counts in self._skipped.values()), Counter())

    def update(self, step: StepBatch) -> None:
        """Note that `step` has been trained on."""
        worker = str(step.cursor["worker"])
        self._workers, self._world_size = step.cursor["workers"], step.cursor["world_size"]
        self._next = (step.cursor["worker"] + 1) % self._workers
        self._cursors[worker] = step.cursor["streams"]
        self._skipped[worker] = step.skipped

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts."""
        return {
            "workers": self._workers,
            "world_size": self._world_size,
            "next": self._next,
            "cursors": dict(self._cursors),
            "skipped": dict(self._skipped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            self._workers, self._world_size, self._next = state["workers"], state["world_size"], state["next"]
            self._cursors, self._skipped = dict(state["cursors"]), dict(state["skipped"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the checkpoint's data position is damaged ({error!r}); use an earlier one") from None


class StepLoader:
    """Epochs of a set number of steps over one unending DataLoader: workers live on, and no prefetched step is lost.

    A DataLoader alone would restart its dataset each epoch. `steps` None: one epoch that never ends.
    """

    def __init__(self, loader: DataLoader, steps: int | None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps_per_epoch={steps}; give 1 or more")
        self.loader = loader
        self.steps = steps
        self._iterator: Iterator[StepBatch] | None = None

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("this loader has no length: steps_per_epoch is None")
        return self.steps

    def __iter__(self) -> Iterator[StepBatch]:
        done = 0
        while self.steps is None or done < self.steps:
            yield self._next()
            done += 1

    def _next(self) -> StepBatch:
        if self._iterator is None:
            self._iterator = iter(self.loader)
        step = next(self._iterator)
        if isinstance(step, _StepFailure):
            raise ValueError(step.message)
        return step

    def close(self) -> None:
        """Stop the workers."""
        self._iterator = None


def make_loader(
    dataset: PairLoader,
    *,
    steps_per_epoch: int | None,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> StepLoader:
    """The loader of a training run. `prefetch`: steps each worker prepares ahead."""
    parallel = {"prefetch_factor": prefetch} if num_workers else {}
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, pin_memory=pin_memory, **parallel)
    return StepLoader(loader, steps_per_epoch)
