"""Streams -> loaders for Lightning: the cache of frozen states, resuming, validation sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
from rich.progress import Progress
from torch.utils.data import DataLoader

from cclm.data.batches import StreamConfig
from cclm.data.loader import LoaderProgress, PairLoader, StepLoader, make_loader
from cclm.data.pairs import ImageCaption, Statements
from cclm.data.readers import CachedStates, ImageReader, PixelReader
from cclm.data.state_cache import CacheSettings, StateCache, cached_states
from cclm.models.processor import CCLMProcessor
from cclm.models.vision import ImageEncoder
from cclm.training.validation import Measured, RetrievalSet, StatementSet


@dataclass(frozen=True)
class LoaderSettings:
    """How batches reach the trainer.

    `steps_per_epoch`: an epoch is a number of steps, never a pass over shards that may be uneven. `cache`: folder for
    the states of a frozen image encoder, None to compute them in every step; `versions`: 1 plain + augmented copies.
    """

    workers: int = 0
    steps_per_epoch: int = 1000
    pin_memory: bool = False
    prefetch: int = 2
    decode_margin: float = 2.0
    cache: str | None = None
    versions: int = 1

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.loader.{name} is {getattr(self, name)}; give {least} or more")


class StreamDataModule(pl.LightningDataModule):
    """Training streams by name; the processor is that of the system which trains on them."""

    def __init__(
        self,
        streams: dict[str, StreamConfig],
        loader: LoaderSettings = LoaderSettings(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.streams, self.settings, self.seed = streams, loader, seed
        self.validation: dict[str, Measured] = {}
        self.testing: dict[str, Measured] = {}
        self.progress = LoaderProgress()
        self._resume: dict[str, Any] | None = None
        self._loader: StepLoader | None = None

    @property
    def processor(self) -> CCLMProcessor:
        return self.trainer.lightning_module.processor

    def train_dataloader(self) -> StepLoader:
        self._loader = make_loader(
            PairLoader(
                self.streams,
                self.processor,
                self._image_reader(),
                seed=self.seed,
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
                resume=self._resume,
            ),
            steps_per_epoch=self.settings.steps_per_epoch,
            num_workers=self.settings.workers,
            pin_memory=self.settings.pin_memory,
            prefetch=self.settings.prefetch,
        )
        return self._loader

    def val_dataloader(self) -> DataLoader:
        return self._tasks(self.validation)

    def test_dataloader(self) -> DataLoader:
        return self._tasks(self.testing or self.validation)

    def _tasks(self, sets: Mapping[str, Measured]) -> DataLoader:
        tasks = [chosen.task(name, self._cache(chosen.shards, 1)) for name, chosen in sets.items()]
        return DataLoader(tasks, batch_size=None)

    def _image_reader(self) -> ImageReader | None:
        """States from the cache where one is wanted, else pixels; streams without images never ask."""
        kinds = (ImageCaption, Statements)
        folders = [stream.shards for stream in self.streams.values() if isinstance(stream.pairs, kinds)]
        if self.settings.cache is None or not folders:
            return PixelReader(self.processor, train=True, decode_margin=self.settings.decode_margin)
        if any(folder != folders[0] for folder in folders) or isinstance(folders[0], dict):
            raise ValueError("data.loader.cache serves image streams over one dataset; set it to null for more")
        return CachedStates(self._cache(folders[0], self.settings.versions), train=True)

    def _cache(self, source: str | list[str], versions: int) -> StateCache | None:
        if self.settings.cache is None:
            return None
        system = self.trainer.lightning_module
        encoder = system.model.image_encoder.eval()
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ValueError(
                "data.loader.cache keeps states of an image encoder that still trains; add image_encoder to "
                "model.optimizer.frozen, or set the cache to null"
            )
        device = self.trainer.strategy.root_device
        encoder.to(device)
        settings = CacheSettings(self.settings.cache, _fingerprint(encoder, self.processor), versions, seed=self.seed)
        with cache_progress() as progress:
            return cached_states(source, lambda pixels: encoder(pixels.to(device)), self.processor, settings, progress)

    # Lightning asks for these when it writes and reads a checkpoint. It keeps rank 0's only: `cclm fit` on several
    # ranks resumes every rank from the same counters, which is right because a position counts alike on all of them.
    def state_dict(self) -> dict[str, Any]:
        return self.progress.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress.load_state_dict(state)
        self._resume = state

    def teardown(self, stage: str) -> None:
        if self._loader is not None:
            self._loader.close()


class PairDataModule(StreamDataModule):
    """With sets by name that a cross-view model is measured by: `validation` and `test` to retrieve from, `statements`.

    `cclm test` runs `test` where it is given, else the others.
    """

    def __init__(
        self,
        streams: dict[str, StreamConfig],
        loader: LoaderSettings = LoaderSettings(),
        validation: dict[str, RetrievalSet] | None = None,
        test: dict[str, RetrievalSet] | None = None,
        statements: dict[str, StatementSet] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(streams, loader, seed)
        self.validation = {**(validation or {}), **(statements or {})}
        self.testing = {**(test or {})}
        if twice := set(validation or {}) & set(statements or {}):
            raise ValueError(f"data.validation and data.statements both have {twice.pop()!r}; name each set once")
        for name, chosen in (self.validation | self.testing).items():
            chosen.check(name)


def _fingerprint(encoder: ImageEncoder, processor: CCLMProcessor) -> str:
    """What the states depend on: the weights of the backbone and the image settings."""
    digest = hashlib.sha256(json.dumps(asdict(processor.settings)).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def cache_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar that appears only if something is computed."""
    with Progress(transient=True) as bar:
        rows: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not rows:
                rows.append(bar.add_task("image states", total=total))
            bar.update(rows[0], completed=done)

        yield progress
