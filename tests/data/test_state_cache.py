"""The cache of backbone states: right rows, computed once, computed anew when anything they depend on changes."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cclm.data.batches import StreamConfig
from cclm.data.loader import PairLoader, make_loader
from cclm.data.pairs import ImageCaption
from cclm.data.readers import CachedStates
from cclm.data.shards import write_shards
from cclm.data.state_cache import CacheSettings, StateCache, cached_states
from cclm.models.processor import CCLMProcessor
from cclm.types import StatesInput
from tests.data.conftest import full_disk, image_records, picture


class Backbone:
    """A real function of the pixels that counts how many images it saw."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)  # (B, 16, 3)


def _expected(processor: CCLMProcessor, number: int) -> np.ndarray:
    image = Image.open(io.BytesIO(picture(number)))
    return Backbone()(processor.images([image]))[0].to(torch.float16).numpy()


def test_states_of_every_image_once(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    backbone, calls = Backbone(), []
    settings = CacheSettings(str(tmp_path), "weights-1", batch_size=7)
    cache = cached_states(photos, backbone, processor, settings, lambda done, total: calls.append((done, total)))
    assert (len(cache), cache.versions, cache.shape, backbone.images) == (60, 1, (16, 3), 60)
    assert cache.states.dtype == np.float16 and isinstance(cache.states, np.memmap)
    for number in (0, 13, 59):
        assert np.array_equal(cache.get(f"p{number:05d}"), _expected(processor, number))
    assert calls[0] == (7, 60) and calls[-1] == (60, 60)
    cached_states(photos, backbone, processor, settings)
    assert backbone.images == 60, "computed again although nothing had changed"


def test_anything_they_depend_on_makes_a_new_cache(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    backbone = Backbone()
    base = CacheSettings(str(tmp_path / "cache"), "weights-1")
    cached_states(photos, backbone, processor, base)
    write_shards(image_records(60), tmp_path / "other", samples_per_shard=12)
    other_size = CCLMProcessor(processor.tokenizer, replace(processor.settings, image_size=40))
    for source, used, settings in (
        (photos, processor, replace(base, fingerprint="weights-2")),
        (photos, processor, replace(base, versions=2)),
        (tmp_path / "other", processor, base),
        (photos, other_size, base),
    ):
        before = backbone.images
        cached_states(source, backbone, used, settings)
        assert backbone.images > before
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_versions_are_augmented_and_drawn_per_epoch(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    settings = CacheSettings(str(tmp_path), "w", versions=3)
    cache = cached_states(photos, Backbone(), processor, settings)
    assert cache.versions == 3
    assert np.array_equal(cache.get("p00007"), _expected(processor, 7))
    assert not np.array_equal(cache.get("p00007", 1), cache.get("p00007", 2))

    def drawn(train: bool) -> set[bytes]:
        stream = StreamConfig(str(photos), ImageCaption(), batch_size=60, bucket=1)
        dataset = PairLoader({"photos": stream}, processor, CachedStates(cache, train=train))
        found = set()
        for step in make_loader(dataset, steps_per_epoch=12):
            batch = step.batches["photos"]
            assert isinstance(batch.context, StatesInput) and batch.context.states.shape == (60, 16, 3)
            assert batch.context.states.dtype == torch.float32
            found.add(batch.context.states[batch.keys.index("p00007")].numpy().tobytes())
        return found

    assert len(drawn(True)) == 3 and len(drawn(False)) == 1


def test_workers_map_the_same_file(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    cache = cached_states(photos, Backbone(), processor, CacheSettings(str(tmp_path), "w"))
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).states, cache.states)


def test_bad_images_are_left_out_and_too_many_are_fatal(tmp_path: Path, processor: CCLMProcessor) -> None:
    records = list(image_records(40))
    for bad, name in ((2, "few"), (20, "many")):
        broken = [
            replace(record, image=record.image[:200]) if number < bad else record
            for number, record in enumerate(records)
        ]
        write_shards(broken, tmp_path / name)
    settings = CacheSettings(str(tmp_path / "cache"), "w", batch_size=3)
    cache = cached_states(tmp_path / "few", Backbone(), processor, settings)
    assert len(cache) == 38 and "p00001" not in cache.rows
    assert np.array_equal(cache.get("p00002"), _expected(processor, 2))
    with pytest.raises(ValueError, match=r"20 of 40 images readable \(20 x image not readable\)"):
        cached_states(tmp_path / "many", Backbone(), processor, settings)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_an_image_the_cache_lacks_is_skipped_and_counted(
    photos: Path, tmp_path: Path, processor: CCLMProcessor
) -> None:
    write_shards(image_records(58), tmp_path / "fewer")
    cache = cached_states(tmp_path / "fewer", Backbone(), processor, CacheSettings(str(tmp_path / "c"), "w"))
    stream = StreamConfig(str(photos), ImageCaption(), batch_size=10)
    dataset = PairLoader({"photos": stream}, processor, CachedStates(cache, train=True))
    steps = list(make_loader(dataset, steps_per_epoch=12))
    assert steps[-1].skipped["image not in the state cache"] >= 2
    assert not {"p00058", "p00059"} & {key for step in steps for key in step.batches["photos"].keys}


def test_full_disk_leaves_no_cache(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    with full_disk(2000), pytest.raises(OSError, match="disk full while writing"):
        cached_states(photos, Backbone(), processor, CacheSettings(str(tmp_path / "c"), "w", batch_size=4))
    assert list((tmp_path / "c").iterdir()) == []


def test_states_beyond_float16_are_refused(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    with pytest.raises(ValueError, match="beyond float16's range"):
        cached_states(photos, lambda p: Backbone()(p) * 1e6, processor, CacheSettings(str(tmp_path), "w"))


def test_a_damaged_cache_says_to_delete_it(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    cache = cached_states(photos, Backbone(), processor, CacheSettings(str(tmp_path), "w"))
    np.save(cache.folder / "states.npy", np.zeros((3, 1, 2, 2), np.float16))
    with pytest.raises(ValueError, match="is not a state cache of 60 images; delete it"):
        StateCache.open(cache.folder)


def test_twice_the_same_key_is_refused(photos: Path, tmp_path: Path, processor: CCLMProcessor) -> None:
    with pytest.raises(ValueError, match="an image key comes twice"):
        cached_states([str(photos)] * 2, Backbone(), processor, CacheSettings(str(tmp_path), "w"))
