"""Steps: resume to the very next sample, disjoint readers, replaced bad images, epochs of a set length."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cclm.data.batches import StreamConfig
from cclm.data.loader import LoaderProgress, PairLoader, StepBatch, StepLoader, make_loader
from cclm.data.pairs import ImageCaption, Translation
from cclm.data.readers import PixelReader
from cclm.data.shards import write_shards
from cclm.models.processor import CCLMProcessor
from tests.data.conftest import image_records


def _streams(photos: Path, texts: Path) -> dict[str, StreamConfig]:
    return {
        "photos": StreamConfig(str(photos), ImageCaption(["en", "de"], temperature=2.0), batch_size=4, bucket=3),
        "texts": StreamConfig(str(texts), Translation(anchor="en"), batch_size=8, bucket=2),
    }


def _loader(
    photos: Path, texts: Path, processor: CCLMProcessor, workers: int = 0, resume: dict | None = None, steps: int = 30
) -> StepLoader:
    reader = PixelReader(processor, train=True)
    dataset = PairLoader(_streams(photos, texts), processor, reader, seed=3, resume=resume)
    return make_loader(dataset, steps_per_epoch=steps, num_workers=workers)


def _keys(steps: list[StepBatch]) -> list[list[tuple[str, ...]]]:
    return [[batch.keys for batch in step.batches.values()] for step in steps]


def test_step_holds_a_trimmed_batch_of_every_stream(photos: Path, texts: Path, processor: CCLMProcessor) -> None:
    step = next(iter(_loader(photos, texts, processor)))
    assert list(step.batches) == ["photos", "texts"]
    assert step.batches["photos"].context.pixel_values.shape == (4, 3, 32, 32)
    for batch in (step.batches["texts"].context, step.batches["texts"].target, step.batches["photos"].target):
        assert batch.attention_mask.any(dim=0).all(), "a column of padding only"
    assert len(step.batches["texts"].keys) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_a_random_step_gives_the_next_unseen_sample(
    photos: Path, texts: Path, processor: CCLMProcessor, workers: int
) -> None:
    whole = list(_loader(photos, texts, processor, workers))
    stop = random.Random(workers).randrange(3, 27)
    progress = LoaderProgress()
    for step, _ in zip(_loader(photos, texts, processor, workers), range(stop), strict=False):
        progress.update(step)
    state = json.loads(json.dumps(progress.state_dict()))  # what a checkpoint keeps is plain
    rest = list(_loader(photos, texts, processor, workers, state, steps=30 - stop))
    assert _keys(rest) == _keys(whole[stop:])
    for ours, theirs in zip(rest, whole[stop:], strict=True):
        assert torch.equal(ours.batches["photos"].context.pixel_values, theirs.batches["photos"].context.pixel_values)
        assert torch.equal(ours.batches["texts"].context.input_ids, theirs.batches["texts"].context.input_ids)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_resumed_twice_with_workers(photos: Path, texts: Path, processor: CCLMProcessor) -> None:
    whole = _keys(list(_loader(photos, texts, processor, 3, steps=17)))
    seen, state = [], None
    for count in (4, 1, 12):
        progress = LoaderProgress()
        if state is not None:
            progress.load_state_dict(state)
        for step in _loader(photos, texts, processor, 3, state, steps=count):
            progress.update(step)
            seen += _keys([step])
        state = progress.state_dict()
    assert seen == whole


def test_resume_with_another_number_of_workers_is_refused(photos: Path, texts: Path, processor: CCLMProcessor) -> None:
    progress = LoaderProgress()
    progress.update(next(iter(_loader(photos, texts, processor))))
    with pytest.raises(ValueError, match="workers=1, now it is 2"):
        next(iter(_loader(photos, texts, processor, 2, progress.state_dict())))


def test_ranks_and_workers_cover_everything_once(photos: Path, processor: CCLMProcessor) -> None:
    seen: Counter[str] = Counter()
    for rank in range(2):
        stream = StreamConfig(str(photos), ImageCaption(), batch_size=5, bucket=1)
        dataset = PairLoader(
            {"photos": stream}, processor, PixelReader(processor, train=False), rank=rank, world_size=2
        )
        for step in make_loader(dataset, steps_per_epoch=6, num_workers=2):
            seen.update(step.batches["photos"].keys)
    assert sorted(seen) == [f"p{number:05d}" for number in range(60)]
    assert set(seen.values()) == {1}


def test_an_epoch_is_a_number_of_steps_and_the_next_goes_on(
    photos: Path, texts: Path, processor: CCLMProcessor
) -> None:
    whole = _keys(list(_loader(photos, texts, processor, 2, steps=9)))
    loader = _loader(photos, texts, processor, 2, steps=3)
    assert len(loader) == 3
    assert _keys([step for _ in range(3) for step in loader]) == whole


def test_uneven_shards_do_not_hang(tmp_path: Path, processor: CCLMProcessor) -> None:
    write_shards(image_records(23), tmp_path / "train", samples_per_shard=7)
    stream = StreamConfig(str(tmp_path / "train"), ImageCaption(), batch_size=4)
    for rank in range(2):
        dataset = PairLoader(
            {"photos": stream}, processor, PixelReader(processor, train=False), rank=rank, world_size=2
        )
        assert len(list(make_loader(dataset, steps_per_epoch=12, num_workers=2))) == 12


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_reader_without_any_sample_stops_with_one_line(tmp_path: Path, processor: CCLMProcessor) -> None:
    write_shards(image_records(2), tmp_path / "train")
    stream = StreamConfig(str(tmp_path / "train"), ImageCaption(), batch_size=2)
    dataset = PairLoader({"photos": stream}, processor, PixelReader(processor, train=False))
    with pytest.raises(ValueError, match=r"nothing readable for reader 3 of 3.*use fewer workers") as raised:
        list(make_loader(dataset, steps_per_epoch=4, num_workers=3))
    assert "\n" not in str(raised.value)


def test_bad_images_are_replaced_counted_and_kept_in_resume(tmp_path: Path, processor: CCLMProcessor) -> None:
    records = [
        replace(record, image=record.image[:200]) if number % 10 == 3 else record
        for number, record in enumerate(image_records(50))
    ]
    write_shards(records, tmp_path / "train", samples_per_shard=10)

    def loader(resume: dict | None, steps: int) -> StepLoader:
        stream = StreamConfig(str(tmp_path / "train"), ImageCaption(), 5, bucket=4, max_bad_share=0.2)
        dataset = PairLoader({"photos": stream}, processor, PixelReader(processor, train=False), resume=resume)
        return make_loader(dataset, steps_per_epoch=steps)

    whole = list(loader(None, 20))
    assert all(len(step.batches["photos"]) == 5 for step in whole)
    assert not any(key.endswith("3") for step in whole for key in step.batches["photos"].keys)
    assert whole[-1].skipped["image not readable"] >= 8
    progress = LoaderProgress()
    for step in whole[:7]:
        progress.update(step)
    rest = list(loader(progress.state_dict(), 13))
    assert _keys(rest) == _keys(whole[7:])
    assert rest[-1].skipped == whole[-1].skipped


def test_too_many_bad_images_are_fatal(tmp_path: Path, processor: CCLMProcessor) -> None:
    records = [replace(record, image=record.image[:200]) for record in image_records(20)]
    write_shards([*records, *image_records(20, start=20)], tmp_path / "train", samples_per_shard=10)
    stream = StreamConfig(str(tmp_path / "train"), ImageCaption(), batch_size=5)
    dataset = PairLoader({"photos": stream}, processor, PixelReader(processor, train=False))
    with pytest.raises(ValueError, match=r"x image not readable.*over max_bad_share=0.1"):
        list(make_loader(dataset, steps_per_epoch=60))


def test_pools_sort_by_length_and_keep_keys_apart(texts: Path, processor: CCLMProcessor) -> None:
    def padding(bucket: int) -> float:
        stream = StreamConfig(str(texts), Translation(["en", "de"]), batch_size=20, bucket=bucket)
        steps = list(make_loader(PairLoader({"texts": stream}, processor), steps_per_epoch=20))
        assert all(len(set(step.batches["texts"].keys)) == 20 for step in steps)
        masks = [step.batches["texts"].target.attention_mask for step in steps]
        return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(10) < 0.5 * padding(1)


def test_language_unknown_to_the_shards_is_named(texts: Path, processor: CCLMProcessor) -> None:
    stream = StreamConfig(str(texts), Translation(["en", "xx"]), batch_size=2)
    with pytest.raises(ValueError, match="no text in language xx; there are de, en, fr"):
        PairLoader({"texts": stream}, processor)


def test_a_stream_that_gives_no_pair_stops(photos: Path, processor: CCLMProcessor) -> None:
    stream = StreamConfig(str(photos), Translation(["en", "de"]), batch_size=2)
    with pytest.raises(ValueError, match=r"gave no pair.*no two texts in wanted languages"):
        list(make_loader(PairLoader({"photos": stream}, processor), steps_per_epoch=1))


def test_two_streams_of_one_folder_differ(texts: Path, processor: CCLMProcessor) -> None:
    streams = {name: StreamConfig(str(texts), Translation(), batch_size=8) for name in "ab"}
    step = next(iter(make_loader(PairLoader(streams, processor), steps_per_epoch=1)))
    assert step.batches["a"].keys != step.batches["b"].keys


def test_seed_decides_the_order(photos: Path, texts: Path, processor: CCLMProcessor) -> None:
    def keys(seed: int) -> list:
        dataset = PairLoader(_streams(photos, texts), processor, PixelReader(processor, train=True), seed=seed)
        return _keys(list(make_loader(dataset, steps_per_epoch=5)))

    assert keys(1) == keys(1) != keys(2)


def test_weights_of_a_mixture(tmp_path: Path, processor: CCLMProcessor) -> None:
    for name, start in (("a", 0), ("b", 1000)):
        write_shards(image_records(30, start), tmp_path / name)
    shards = {str(tmp_path / "a"): 3.0, str(tmp_path / "b"): 1.0}
    stream = StreamConfig(shards, ImageCaption(), batch_size=10)

    def steps(count: int, resume: dict | None = None) -> list[StepBatch]:
        dataset = PairLoader({"photos": stream}, processor, PixelReader(processor, train=False), resume=resume)
        return list(make_loader(dataset, steps_per_epoch=count))

    whole = steps(40)
    share = sum(key < "p01000" for step in whole for key in step.batches["photos"].keys) / 400
    assert 0.68 < share < 0.82
    progress = LoaderProgress()
    for step in whole[:13]:
        progress.update(step)
    assert _keys(steps(27, progress.state_dict())) == _keys(whole[13:])


def test_a_batch_of_huge_images_is_resized_in_parts(
    photos: Path, processor: CCLMProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first() -> StepBatch:
        stream = StreamConfig(str(photos), ImageCaption(), batch_size=10)
        return next(
            iter(
                make_loader(PairLoader({"photos": stream}, processor, PixelReader(processor, True)), steps_per_epoch=1)
            )
        )

    whole = first()
    monkeypatch.setattr("cclm.data.readers._WAITING_BYTES", 3 * 40 * 40)
    parts = first()
    assert parts.batches["photos"].keys == whole.batches["photos"].keys
    assert torch.equal(parts.batches["photos"].context.pixel_values, whole.batches["photos"].context.pixel_values)
