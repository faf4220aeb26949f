"""States of a frozen image backbone, computed once for every image of a dataset and reused by every later run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cclm.data.seeding import seed_of
from cclm.data.shards import MANIFEST, Source, list_shards
from cclm.data.tars import Sample, ShardError, ShardFile, index_shard
from cclm.errors import SampleError
from cclm.images import open_image
from cclm.storage import file_hash, whole_folder

_log = logging.getLogger(__name__)

_STATES, _KEYS = "states.npy", "keys.json"

StateFunction = Callable[[Tensor], Tensor]  # (B, 3, H, W) -> (B, L, W)


class ImageProcessor(Protocol):
    """What the cache needs of the model's processor."""

    @property
    def image_size(self) -> int: ...

    def images(
        self, images: list[Image.Image], train: bool = False, generator: torch.Generator | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class CacheSettings:
    """Where and what to cache.

    `folder` holds one subfolder per cache; `fingerprint` names the backbone's weights and the pixel settings, so that
    a changed one is computed anew. `versions`: 1 plain state set plus (versions - 1) augmented ones per image.
    """

    folder: str
    fingerprint: str
    versions: int = 1
    batch_size: int = 64
    seed: int = 0
    threads: int = 2
    max_bad_share: float = 0.1


@dataclass(frozen=True)
class StateCache:
    """Read-only states by record key, float16, memory-mapped."""

    folder: Path
    rows: dict[str, int]
    states: np.ndarray  # (N, versions, L, W)

    @property
    def versions(self) -> int:
        return self.states.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(L, W) of one image's states."""
        return self.states.shape[2], self.states.shape[3]

    def get(self, key: str, version: int = 0) -> np.ndarray:
        """(L, W) float16. Errors: KeyError for an image that was not there or could not be read."""
        return self.states[self.rows[key], version]

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a spawned worker maps the file itself instead of receiving a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(StateCache.open(state["folder"]).__dict__)

    @classmethod
    def open(cls, folder: Path | str) -> StateCache:
        """Errors: OSError, ValueError where the folder is not a whole cache."""
        folder = Path(folder)
        keys = json.loads((folder / _KEYS).read_bytes())
        states = np.load(folder / _STATES, mmap_mode="r", allow_pickle=False)
        if states.ndim != 4 or states.dtype != np.float16 or len(states) != len(keys):
            raise ValueError(f"{folder} is not a state cache of {len(keys)} images; delete it, it will be built again")
        return cls(folder, {key: row for row, key in enumerate(keys)}, states)


def cached_states(
    source: Source,
    states: StateFunction,
    processor: ImageProcessor,
    settings: CacheSettings,
    progress: Callable[[int, int], None] | None = None,
) -> StateCache:
    """The states of every image in `source`: read where they were computed before, else computed by `states`.

    `progress(done, total)` is called after every batch of images. Errors: as list_shards; ValueError for no image at
    all, for more than `max_bad_share` bad ones, for a key that comes twice and for states beyond float16.
    """
    if settings.versions < 1:
        raise ValueError(f"versions={settings.versions} of a state cache; give 1 (plain) or more")
    paths = list_shards(source)
    folder = Path(settings.folder) / _name(paths, processor.image_size, settings)
    if not folder.exists():
        _log.info("computing the image states of %s into %s", source, folder)
        with whole_folder(folder) as partial:
            _Builder(str(source), states, processor, settings).build(paths, partial, progress)
    return StateCache.open(folder)


def _name(paths: list[str], image_size: int, settings: CacheSettings) -> str:
    """A hash of everything the states depend on; a folder of shards counts by its manifest, other tars by content."""
    digest = hashlib.sha256()
    seed = settings.seed if settings.versions > 1 else 0
    digest.update(json.dumps([settings.fingerprint, image_size, settings.versions, seed]).encode())
    for path in paths:
        manifest = Path(path).parent / MANIFEST
        digest.update(f"{Path(path).name}\0{file_hash(manifest if manifest.exists() else path)}\0".encode())
    return digest.hexdigest()[:20]


class _Builder:
    """Decodes in threads while the backbone computes, and appends rows to one .npy file."""

    def __init__(self, name: str, states: StateFunction, processor: ImageProcessor, settings: CacheSettings) -> None:
        self._name = name
        self._states = states
        self._processor = processor
        self._settings = settings
        self._skipped: Counter[str] = Counter()
        self._keys: list[str] = []
        self._shape: tuple[int, ...] = ()

    def build(self, paths: list[str], folder: Path, progress: Callable[[int, int], None] | None) -> None:
        samples = [sample for path in paths for sample in self._samples(path)]
        if len({sample.key for sample in samples}) != len(samples):
            raise ValueError(f"{self._name}: an image key comes twice; a state cache needs different keys per image")
        # Plain appends, not a memory map: on a full disk these raise, where a map would kill the process.
        with open(folder / _STATES, "wb") as handle:
            for done, batch in self._decoded(samples):
                rows = self._compute(batch)
                if not self._shape:
                    self._shape = rows.shape[1:]
                    self._header(handle, len(samples))
                handle.write(rows.tobytes())
                if progress is not None:
                    progress(done, len(samples))
            self._check(len(samples))
            handle.seek(0)
            self._header(handle, len(self._keys))
        (folder / _KEYS).write_text(json.dumps(self._keys, ensure_ascii=False))

    def _samples(self, path: str) -> list[Sample]:
        index = index_shard(ShardFile(path))
        if index.damage:
            raise ValueError(f"{path}: {index.damage}; run `cclm data check` and copy or build it again")
        return [sample for sample in index.samples if sample.image is not None and sample.bad is None]

    def _header(self, handle: BinaryIO, rows: int) -> None:
        """numpy leaves room in the header for the first dimension, so it can be written again once rows are known."""
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, *self._shape)}
        np.lib.format.write_array_header_1_0(handle, header)

    def _decoded(self, samples: Sequence[Sample]) -> Iterator[tuple[int, list[tuple[str, Image.Image]]]]:
        """Batches of decoded images, the next one always under way. Yields (samples done, good ones of the batch)."""
        size = self._settings.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        with ThreadPoolExecutor(self._settings.threads) as pool:

            def submit(batch: Sequence[Sample]) -> list[Future[Image.Image]]:
                return [pool.submit(self._decode, sample) for sample in batch]

            ahead = [submit(batch) for batch in batches[:1]]
            done = 0
            for number, batch in enumerate(batches):
                futures = ahead.pop()
                ahead += [submit(following) for following in batches[number + 1 : number + 2]]
                good = []
                for sample, future in zip(batch, futures, strict=True):
                    try:
                        good.append((sample.key, future.result()))
                    except (SampleError, ShardError) as error:
                        self._skipped[str(error)] += 1
                done += len(batch)
                if good:
                    yield done, good

    def _decode(self, sample: Sample) -> Image.Image:
        assert sample.image is not None
        return open_image(sample.image.read(), self._processor.image_size)

    @torch.inference_mode()
    def _compute(self, batch: list[tuple[str, Image.Image]]) -> np.ndarray:
        """(B, versions, L, W) float16 of one batch; version 0 is plain."""
        keys = [key for key, _ in batch]
        images = [image for _, image in batch]
        versions = [self._states(self._processor.images(images))]
        for version in range(1, self._settings.versions):
            pixels = []
            for key, image in batch:
                generator = torch.Generator().manual_seed(seed_of(self._settings.seed, "version", version, key))
                pixels.append(self._processor.images([image], train=True, generator=generator))
            versions.append(self._states(torch.cat(pixels)))
        rows = torch.stack(versions, dim=1).to("cpu", torch.float16)  # (B, versions, L, W)
        if not torch.isfinite(rows).all():
            raise ValueError(f"{self._name}: states beyond float16's range; this backbone's states cannot be cached")
        self._keys += keys
        return rows.numpy()

    def _check(self, samples: int) -> None:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self._skipped.items())
        bad = self._skipped.total()
        if not self._keys or bad > self._settings.max_bad_share * samples:
            raise ValueError(
                f"{self._name}: {len(self._keys)} of {samples} images readable ({reasons or 'no image record'});"
                " run `cclm data check` and build the shards again"
            )
        if bad:
            _log.warning("%s: %d images left out of the state cache: %s", self._name, bad, reasons)
