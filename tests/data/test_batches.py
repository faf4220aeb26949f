"""Batches of statements, several images and regions: what they hold and see, and that they resume in mid-record."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from cclm.data.batches import BatchStream, StreamConfig
from cclm.data.loader import LoaderProgress, PairLoader, StepBatch, make_loader
from cclm.data.pairs import ImageCaption, PairDrawer, Regions, Statements, Translation
from cclm.data.readers import CachedStates, ImageReader, PixelReader
from cclm.data.seeding import seed_of
from cclm.data.shards import write_shards
from cclm.data.state_cache import CacheSettings, cached_states
from cclm.data.stream import Share
from cclm.models.processor import CCLMProcessor
from cclm.types import ImageInput, ImagesInput, PairBatch, Record, Region, RegionInput, Statement, StatesInput
from tests.data.conftest import image_records, picture, text_records
from tests.data.test_shards import write_tar

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "yellow": (255, 255, 0)}


def said_records(count: int, images: int = 1) -> Iterator[Record]:
    """Records with 1 to 7 statements, the nth with n % 3 + 1 labels."""
    for number in range(count):
        statements = tuple(
            Statement(
                {"en": f"dog {number} {n}", "de": f"Hund {number} {n}"},
                {f"{number} {n} {k}": 1 / (n % 3 + 1) for k in range(n % 3 + 1)},
            )
            for n in range(number % 7 + 1)
        )
        others = tuple(picture(number + 100 * other) for other in range(1, images))
        yield Record(f"s{number:03d}", picture(number), others=others, statements=statements)


def scene(number: int, scale: int = 1, kind: str = "PNG") -> Record:
    """Rectangles of one colour each on white, with a region for each: what a box shows can be told by its middle."""
    image = Image.new("RGB", (80 * scale, 60 * scale), "white")
    regions = []
    for index, (name, colour) in enumerate(COLOURS.items()):
        left, top = (8 + 14 * index + number % 5) * scale, (6 + (index * 17 + number * 7) % 40) * scale
        ImageDraw.Draw(image).rectangle((left, top, left + 9 * scale - 1, top + 11 * scale - 1), fill=colour)
        regions.append(Region((float(left), float(top), 9.0 * scale, 11.0 * scale), {"en": [name]}))
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    captions = {"en": [f"whole {number}"]} if number % 2 else {}
    return Record(f"r{number:03d}", out.getvalue(), captions, regions=tuple(regions), size=image.size)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("said") / "train"
    write_shards(said_records(24), folder, samples_per_shard=6)
    return str(folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scenes") / "train"
    write_shards((scene(number) for number in range(24)), folder, samples_per_shard=6)
    return str(folder)


def stream_of(
    shards: str | dict[str, float],
    pairs: PairDrawer,
    processor: CCLMProcessor,
    reader: ImageReader | None = None,
    **settings: Any,
) -> BatchStream:
    config = StreamConfig(shards, pairs, **{"batch_size": 8, "bucket": 3, **settings})
    return BatchStream("own", config, processor, reader or PixelReader(processor, train=True), 3, Share())


def content(batch: PairBatch) -> tuple:
    """Everything a batch holds, comparable."""
    tensors = [value for side in (batch.context, batch.target, batch.labels) if side for value in vars(side).values()]
    tensors += [batch.ids]
    return batch.keys, tuple(v.tolist() if isinstance(v, torch.Tensor) else str(v) for v in tensors)


def test_statements_bring_their_labels(said: str, processor: CCLMProcessor) -> None:
    stream = stream_of(said, Statements(), processor, bucket=1)
    for _ in range(6):
        batch = next(stream)
        assert isinstance(batch.context, ImageInput) and len(batch.context) == len(batch) == 8
        labels = batch.labels
        assert labels is not None and labels.owner.dtype == torch.int64
        assert torch.equal(labels.text.input_ids, processor.texts(list(labels.names)).input_ids)
        assert sorted(set(labels.owner.tolist())) == list(range(8))
        of_row = [[label for label, owner in zip(range(len(labels.names)), labels.owner, strict=True) if owner == row]
                  for row in range(8)]  # fmt: skip
        for row, own in enumerate(of_row):
            number, n, _ = labels.names[own[0]].split()
            count = int(n) % 3 + 1
            assert batch.keys[row] == f"s{int(number):03d}"
            assert [labels.names[label] for label in own] == [f"{number} {n} {k}" for k in range(count)]
            assert labels.weight[own].tolist() == pytest.approx([1 / count] * count)
            ids = batch.target.input_ids[row][batch.target.attention_mask[row]].tolist()
            texts = processor.texts([f"dog {number} {n}"]), processor.texts([f"Hund {number} {n}"])
            assert ids in [text.input_ids[0].tolist() for text in texts]
        moved = batch.to("cpu")
        assert moved.labels is not None and moved.labels.names == labels.names


def test_labels_are_not_cleaned_and_texts_are(tmp_path: Path, processor: CCLMProcessor) -> None:
    said = Statement({"en": "A dog, red!"}, {"One-Two": 1.0})
    write_shards([Record("k", picture(1), statements=(said,))], tmp_path / "train")
    cleaning = CCLMProcessor(processor.tokenizer, processor.settings, 24, "question")
    batch = next(stream_of(str(tmp_path / "train"), Statements(), cleaning, batch_size=1, bucket=1))
    assert batch.labels is not None
    assert torch.equal(batch.labels.text.input_ids, processor.texts(["One-Two"]).input_ids)
    assert torch.equal(batch.target.input_ids, processor.texts(["a dog  red"]).input_ids)


def test_every_statement_comes_once_an_epoch(said: str, processor: CCLMProcessor) -> None:
    """Whatever the batch size: what a batch or a pool leaves over comes with the next."""
    total = sum(len(record.statements) for record in said_records(24))
    stream = stream_of(said, Statements(["en"]), processor, batch_size=5, bucket=3)
    seen: Counter[str] = Counter()
    while not seen or stream._stream.epoch == 0:
        labels = next(stream).labels
        assert labels is not None
        seen.update({name.rpartition(" ")[0] for name in labels.names})
    twice = sum(count > 1 for count in seen.values())
    assert len(seen) == total and twice < 15  # a pool may end in the next epoch


def test_ids_are_of_the_key_alone(said: str, processor: CCLMProcessor, texts: Path) -> None:
    batch = next(stream_of(said, Statements(), processor, bucket=1))
    assert batch.ids is not None and batch.ids.dtype == torch.int64
    assert batch.ids.tolist() == [seed_of(key) for key in batch.keys]
    assert len(set(batch.ids.tolist())) == len(set(batch.keys)) < 8
    plain = next(stream_of(str(texts), Translation(), processor))
    assert plain.ids is not None and len(set(plain.ids.tolist())) == 8 and plain.labels is None


def test_several_images_of_a_record_stand_side_by_side(tmp_path: Path, processor: CCLMProcessor) -> None:
    records = {record.key: record for record in said_records(9, images=3)}
    write_shards(records.values(), tmp_path / "train")
    shards = str(tmp_path / "train")
    batch = next(stream_of(shards, Statements(), processor, PixelReader(processor, train=False)))
    assert isinstance(batch.context, ImagesInput) and batch.context.pixel_values.shape == (8, 3, 3, 32, 32)
    for key, pixels in zip(batch.keys, batch.context.pixel_values, strict=True):
        images = [Image.open(io.BytesIO(data)) for data in (records[key].image, *records[key].others)]
        assert torch.equal(pixels, processor.images(images))
    twins = [replace(record, others=(record.image,)) for record in records.values()]
    write_shards(twins, tmp_path / "twins")
    pixels = next(stream_of(str(tmp_path / "twins"), Statements(), processor)).context.pixel_values
    assert not torch.equal(pixels[:, 0], pixels[:, 1])  # each image has an augmentation of its own


def test_records_must_agree_in_their_number_of_images(tmp_path: Path, processor: CCLMProcessor) -> None:
    write_shards([*said_records(6, images=2), *(replace(r, key="x" + r.key) for r in said_records(6))], tmp_path / "t")
    stream = stream_of(str(tmp_path / "t"), Statements(), processor)
    with pytest.raises(
        ValueError, match=r"stream own: record '\w+' has [12] images, one before it [12]; give"
    ) as raised:
        for _ in range(20):
            next(stream)
    assert "\n" not in str(raised.value)


def test_captions_of_a_record_with_several_images_see_the_first(tmp_path: Path, processor: CCLMProcessor) -> None:
    records = {r.key: replace(r, others=(picture(99),)) for r in image_records(8)}
    write_shards(records.values(), tmp_path / "train")
    batch = next(stream_of(str(tmp_path / "train"), ImageCaption(), processor, PixelReader(processor, train=False)))
    assert isinstance(batch.context, ImageInput)
    for key, pixels in zip(batch.keys, batch.context.pixel_values, strict=True):
        assert torch.equal(pixels, processor.images([Image.open(io.BytesIO(records[key].image))])[0])


def colour_at(pixels: torch.Tensor, x: float, y: float, processor: CCLMProcessor) -> torch.Tensor:
    """RGB in 0..255 at a place given as shares of (3, H, W)."""
    _, height, width = pixels.shape
    found = pixels[:, min(int(y * height), height - 1), min(int(x * width), width - 1)]
    return 255 * (found * torch.tensor(processor.settings.std) + torch.tensor(processor.settings.mean))


@pytest.mark.parametrize(("scale", "kind"), [(1, "PNG"), (8, "JPEG")])  # the latter is decoded at a half or less
def test_boxes_lie_on_what_their_texts_name(tmp_path: Path, processor: CCLMProcessor, scale: int, kind: str) -> None:
    write_shards((scene(number, scale, kind) for number in range(12)), tmp_path / "train")
    stream = stream_of(str(tmp_path / "train"), Regions(), processor, PixelReader(processor, train=True), batch_size=16)
    names = {tuple(processor.texts([name]).input_ids[0].tolist()): name for name in COLOURS}
    checked: Counter[str] = Counter()
    for _ in range(9):
        batch = next(stream)
        context = batch.context
        assert isinstance(context, RegionInput) and len(context) == 16 and context.image.dtype == torch.int64
        assert context.image.unique().tolist() == list(range(len(context.pixel_values)))
        for row in range(16):
            ids = tuple(i for i in batch.target.input_ids[row].tolist() if i != processor.tokenizer.pad_token_id)
            box = context.boxes[row].tolist()
            assert context.whole[row].item() == (ids not in names)
            if context.whole[row]:
                assert box == [0.5, 0.5, 1.0, 1.0]
            elif min(box[2], box[3]) * 32 >= 4:  # smaller ones blur into what is around them
                seen = colour_at(context.pixel_values[context.image[row]], box[0], box[1], processor)
                assert (seen - torch.tensor(COLOURS[names[ids]])).abs().max() < 60, (names[ids], seen)
                checked[names[ids]] += 1
    assert set(checked) == set(COLOURS) and checked.total() > 60


def test_crop_flip_and_one_resize_are_exact(scenes: str, processor: CCLMProcessor) -> None:
    records = {record.key: record for record in map(scene, range(24))}
    stream = stream_of(scenes, Regions(), processor, PixelReader(processor, train=False))
    drawn = [stream._draw() for _ in range(8)]
    rows, context = stream._read_images(drawn)
    assert isinstance(context, RegionInput) and rows == drawn
    for item, place in zip(drawn, context.image.tolist(), strict=True):
        left, top, width, height = item.pair.part.crop
        image = Image.open(io.BytesIO(records[item.pair.key].image)).crop((left, top, left + width, top + height))
        if item.pair.part.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert torch.equal(context.pixel_values[place], processor.images([image])[0])


def test_regions_of_an_image_stay_together_and_it_is_decoded_once(scenes: str, processor: CCLMProcessor) -> None:
    for bucket in (1, 4):
        stream = stream_of(scenes, Regions(), processor, batch_size=10, bucket=bucket)
        for _ in range(8):
            batch = next(stream)
            runs = [key for key, _ in groupby(batch.keys)]
            assert len(runs) == len(batch.context.pixel_values) < 10
            assert batch.context.image.tolist() == sorted(batch.context.image.tolist())


def test_folders_that_share_keys_keep_their_own_images(tmp_path: Path, processor: CCLMProcessor) -> None:
    """A draw depends on the key: equal ones in two folders give equal crops, of different pictures."""
    for name in ("red", "blue"):
        out = io.BytesIO()
        Image.new("RGB", (40, 40), name).save(out, "PNG")
        region = Region((0.0, 0.0, 40.0, 40.0), {"en": [name]})
        write_shards([Record("same", out.getvalue(), regions=(region,), size=(40, 40))], tmp_path / name)
    shards = [str(tmp_path / name) for name in ("red", "blue")]
    batch = next(
        BatchStream("s", StreamConfig(shards, Regions(), 8), processor, PixelReader(processor, False), 0, Share())
    )
    assert isinstance(batch.context, RegionInput)
    told = processor.tokenizer.batch_decode(batch.target.input_ids, skip_special_tokens=True)
    shown = ["red" if image[0].mean() > image[2].mean() else "blue" for image in batch.context.pixel_values]
    names = [shown[place] for place in batch.context.image.tolist()]
    assert set(names) == {"red", "blue"}
    assert all(name == names[told.index(text)] for name, text in zip(names, told, strict=True))


def test_training_changes_colours_of_regions_only_if_asked(scenes: str, processor: CCLMProcessor) -> None:
    jittery = CCLMProcessor(processor.tokenizer, replace(processor.settings, augment=True), 24)
    plain, train, jitter = (
        stream_of(scenes, Regions(), each, PixelReader(each, train=train))
        for each, train in ((processor, False), (processor, True), (jittery, True))
    )
    changed = 0
    for _ in range(10):
        expected, same, other = (next(stream).context for stream in (plain, train, jitter))
        assert torch.equal(expected.pixel_values, same.pixel_values)
        assert torch.equal(expected.boxes, other.boxes) and torch.equal(expected.image, other.image)
        changed += sum(not torch.equal(a, b) for a, b in zip(expected.pixel_values, other.pixel_values, strict=True))
    assert changed > 3


CASES = [(Statements(), "said", 1), (Statements(), "said", 3), (Regions(), "scenes", 1), (Regions(), "scenes", 2)]


@pytest.mark.parametrize(("drawer", "folder", "bucket"), CASES)
@pytest.mark.parametrize("mixed", [False, True])
def test_every_position_resumes_exactly(
    request: pytest.FixtureRequest, processor: CCLMProcessor, drawer: PairDrawer, folder: str, bucket: int, mixed: bool
) -> None:
    shards = request.getfixturevalue(folder)
    source = {shards: 2.0, f"{shards}/000001.tar": 1.0} if mixed else shards

    def fresh() -> BatchStream:
        return stream_of(source, drawer, processor, batch_size=5, bucket=bucket)

    whole = fresh()
    states = [json.dumps(whole.state_dict())]
    batches = []
    for _ in range(5 * bucket + 1):  # six pools, the last one begun
        batches.append(content(next(whole)))
        states.append(json.dumps(whole.state_dict()))
    assert any(json.loads(state)["start"]["used"] for state in states)  # some pools begin in mid-record
    for number, state in enumerate(states[:-1]):
        again = fresh()
        again.load_state_dict(json.loads(state))
        assert [content(next(again)) for _ in batches[number:]] == batches[number:]
        assert again.state_dict() == whole.state_dict() and again.skipped == whole.skipped


def test_bad_images_give_way_with_all_their_pairs(tmp_path: Path, processor: CCLMProcessor) -> None:
    records = [
        replace(record, image=record.image[:60]) if number % 6 == 2 else record
        for number, record in enumerate(map(scene, range(24)))
    ]
    broken = {record.key for record in records if len(record.image) == 60}
    write_shards(records, tmp_path / "bad", samples_per_shard=6)

    def fresh() -> BatchStream:
        return stream_of(str(tmp_path / "bad"), Regions(), processor, batch_size=6, bucket=2, max_bad_share=0.5)

    whole = fresh()
    batches, states = [], []
    for _ in range(9):
        batch = next(whole)
        assert len(batch) == len(batch.context) == 6 and not broken & set(batch.keys)
        batches.append(content(batch))
        states.append(json.dumps(whole.state_dict()))
    assert 3 <= whole.skipped["image not readable"] <= 12
    for number, state in enumerate(states):
        again = fresh()
        again.load_state_dict(json.loads(state))
        assert [content(next(again)) for _ in batches[number + 1 :]] == batches[number + 1 :]
        assert again.skipped == whole.skipped


def test_a_bad_record_counts_once_a_batch(tmp_path: Path, processor: CCLMProcessor) -> None:
    good, bad = scene(1), scene(3)
    write_shards([good, replace(bad, image=bad.image[:60])], tmp_path / "train")
    stream = stream_of(str(tmp_path / "train"), Regions(), processor, batch_size=12, bucket=1, max_bad_share=0.9)
    visits = {(item.located.epoch, item.pair.key) for item in [stream._draw() for _ in range(12)]}
    fresh = stream_of(str(tmp_path / "train"), Regions(), processor, batch_size=12, bucket=1, max_bad_share=0.9)
    assert set(next(fresh).keys) == {good.key}
    least = sum(key == bad.key for _, key in visits)
    assert least <= fresh.skipped["image not readable"] <= fresh._stream.epoch + 1


def test_a_wrong_size_is_a_bad_image(tmp_path: Path, processor: CCLMProcessor) -> None:
    record = scene(1)
    members = {}
    for number in range(4):
        size = [160, 120] if number == 3 else [80, 60]
        box = [100, 70, 30, 30] if number == 3 else [5, 5, 10, 10]
        fields = {"regions": [{"box": box, "captions": {"en": ["a"]}}], "size": size}
        members |= {f"k{number}.png": record.image, f"k{number}.json": json.dumps(fields).encode()}
    write_tar(tmp_path / "0.tar", members)
    stream = stream_of(str(tmp_path), Regions(), processor, bucket=1)
    assert set(next(stream).keys) == {"k0", "k1", "k2"}
    assert set(stream.skipped) == {"region outside its image"}


def test_workers_resume_in_mid_record(scenes: str, said: str, processor: CCLMProcessor) -> None:
    streams = {"r": StreamConfig(scenes, Regions(), 7, bucket=2), "s": StreamConfig(said, Statements(), 5, bucket=2)}

    def steps(count: int, resume: dict | None = None) -> list[StepBatch]:
        dataset = PairLoader(streams, processor, PixelReader(processor, train=True), seed=1, resume=resume)
        return list(make_loader(dataset, steps_per_epoch=count, num_workers=2))

    whole = steps(13)
    progress = LoaderProgress()
    for step in whole[:7]:
        progress.update(step)
    rest = steps(6, json.loads(json.dumps(progress.state_dict())))
    for step, expected in zip(rest, whole[7:], strict=True):
        for name in streams:
            assert content(step.batches[name]) == content(expected.batches[name])


def test_cached_states_serve_statements_and_refuse_the_rest(
    said: str, scenes: str, tmp_path: Path, processor: CCLMProcessor
) -> None:
    def states(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(2).transpose(1, 2)[:, :4]

    cache = cached_states(said, states, processor, CacheSettings(str(tmp_path), "f"))
    batch = next(stream_of(said, Statements(), processor, CachedStates(cache, train=True)))
    assert isinstance(batch.context, StatesInput) and batch.labels is not None
    for key, row in zip(batch.keys, batch.context.states, strict=True):
        assert torch.equal(row, torch.from_numpy(cache.get(key).copy()).float())
    with pytest.raises(ValueError, match="one whole image of a record; set it to null for streams of regions"):
        next(stream_of(scenes, Regions(), processor, CachedStates(cache, train=True)))
    write_shards(said_records(8, images=2), tmp_path / "two")
    with pytest.raises(ValueError, match="set it to null for streams of several images a record"):
        next(stream_of(str(tmp_path / "two"), Statements(), processor, CachedStates(cache, train=True)))


def test_languages_of_a_stream_are_the_wanted_ones_else_all(tmp_path: Path) -> None:
    write_shards(text_records(8), tmp_path / "texts")
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "texts" / "000000.tar", tmp_path / "bare")

    def languages(folder: str, **drawer: Any) -> dict[str, int]:
        shards = {str(tmp_path / folder): 1.0}
        return StreamConfig(shards, Translation(**drawer), 2).languages()

    assert languages("texts") == {"de": 8, "en": 8, "fr": 8}
    assert languages("texts", languages=["de"], anchor="en") == {"de": 8, "en": 8}
    assert languages("bare", languages=["de"], anchor="en") == {"de": 0, "en": 0} and languages("bare") == {}
