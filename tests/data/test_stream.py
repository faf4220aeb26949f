"""Streams of records: order, coverage, exact state, counted damage."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from cclm.data.shards import write_shards
from cclm.data.stream import RecordStream, Share, StreamSettings
from tests.data.conftest import image_records, picture, text_records
from tests.data.test_shards import cut_in_half, write_tar

CAPTION = b'{"captions": {"en": ["x"]}}'


def _keys(stream: RecordStream, count: int) -> list[str]:
    return [located.record.key for located in islice(stream, count)]


def _epoch_of(folder: Path, total: int, settings: StreamSettings | None = None) -> list[list[str]]:
    """The keys every one of `total` readers sees in its epoch 0."""
    seen = []
    for worker in range(total):
        keys = []
        for located in RecordStream(folder, settings, Share(worker=worker, workers=total)):
            if located.epoch:
                break
            keys.append(located.record.key)
        seen.append(keys)
    return seen


@pytest.mark.parametrize("readers", [1, 2, 4, 7])  # 20 shards: shared out up to 5 readers, strided past that
def test_readers_cover_an_epoch_disjointly(tmp_path: Path, readers: int) -> None:
    write_shards(image_records(60), tmp_path / "train", samples_per_shard=3)
    seen = _epoch_of(tmp_path / "train", readers)
    assert sorted(key for keys in seen for key in keys) == [f"p{number:05d}" for number in range(60)]
    assert max(map(len, seen)) - min(map(len, seen)) <= 3


def test_one_shard_serves_every_reader(tmp_path: Path) -> None:
    write_shards(text_records(50), tmp_path / "train")
    seen = _epoch_of(tmp_path / "train", 4)
    assert Counter(map(len, seen)) == {12: 2, 13: 2}
    assert len({key for keys in seen for key in keys}) == 50


def test_order_depends_on_seed_and_epoch_alone(photos: Path) -> None:
    def epochs(seed: int) -> list[list[str]]:
        stream = RecordStream(photos, StreamSettings(seed=seed, group_shards=2))
        return [_keys(stream, 60) for _ in range(2)]

    first, second = epochs(1)
    assert epochs(1) == [first, second]
    assert first != second and sorted(first) == sorted(second)
    assert epochs(2)[0] != first
    assert first != sorted(first)


def test_records_mix_within_a_group_of_shards(tmp_path: Path) -> None:
    write_shards(image_records(400), tmp_path / "train", samples_per_shard=100)
    keys = _keys(RecordStream(tmp_path / "train"), 100)
    shards = Counter(int(key[1:]) // 100 for key in keys)
    assert len(shards) == 4 and min(shards.values()) > 10


@pytest.mark.parametrize("stop", [0, 1, 17, 40, 59, 60, 61, 130])
def test_state_resumes_exactly(photos: Path, texts: Path, stop: int) -> None:
    for folder in (photos, texts):
        settings = StreamSettings(seed=5, group_shards=2)
        whole = RecordStream(folder, settings)
        _keys(whole, stop)
        again = RecordStream(folder, settings)
        again.load_state_dict(whole.state_dict())
        assert _keys(again, 250) == _keys(whole, 250)


def test_images_are_read_only_on_demand(photos: Path) -> None:
    located = next(RecordStream(photos))
    assert located.record.image == b""
    assert located.slots[0].read() == picture(int(located.record.key[1:]))


def test_truncated_shard_is_counted_with_all_it_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(image_records(300), tmp_path / "train", samples_per_shard=20)
    cut_in_half(tmp_path / "train" / "000004.tar")
    stream = RecordStream(tmp_path / "train")
    with caplog.at_level(logging.WARNING):
        epoch = [located.record.key for located in islice(stream, 600) if located.epoch == 0]
    lost = 300 - len(set(epoch))
    assert 8 <= lost <= 12
    first = next(iter(stream.skipped))
    assert stream.skipped.total() >= lost and first == "shard truncated"
    assert "000004.tar: shard truncated" in caplog.text


def test_too_many_truncated_shards_are_fatal(tmp_path: Path) -> None:
    write_shards(image_records(200), tmp_path / "train", samples_per_shard=20)
    for number in range(5):
        cut_in_half(tmp_path / "train" / f"00000{number}.tar")
    with pytest.raises(ValueError, match=r"shard truncated\), over max_bad_share=0.1; run `cclm data check`") as raised:
        _keys(RecordStream(tmp_path / "train"), 400)
    assert "\n" not in str(raised.value)


def test_bad_samples_are_counted_by_reason_once_per_epoch_and_over_resume(tmp_path: Path) -> None:
    members = {}
    for number in range(60):
        members |= {f"g{number}.jpg": b"", f"g{number}.json": CAPTION}
    members |= {"b0.jpg": b"", "b0.json": b"{}", "b1.jpg": b"", "b1.pkl": b"", "b2.txt": b"alone"}
    write_tar(tmp_path / "0.tar", members)
    whole = RecordStream(tmp_path, StreamSettings(max_bad_share=0.2))
    _keys(whole, 100)
    again = RecordStream(tmp_path, StreamSettings(max_bad_share=0.2))
    again.load_state_dict(whole.state_dict())
    _keys(whole, 80), _keys(again, 80)  # both end at record 180, the end of epoch 2
    reasons = {"json without captions": 3, "unknown member .pkl": 3, "neither image nor json": 3}
    for stream in (whole, again):
        counted = Counter(stream.skipped)
        assert set(counted) == set(reasons)
        assert counted["unknown member .pkl"] == 3 and counted["neither image nor json"] == 3
    assert whole.skipped == again.skipped


def test_nothing_but_bad_samples_stops_after_one_epoch(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": b"", "a.json": b"{}", "b.pkl": b""})
    with pytest.raises(ValueError, match=r"nothing readable.*1 x unknown member \.pkl, 1 x json without captions"):
        next(RecordStream(tmp_path))


def test_an_empty_tar_does_not_hang(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {})
    with pytest.raises(ValueError, match="nothing readable for reader 1 of 1"):
        next(RecordStream(tmp_path))


def test_pipe_shards_behind_the_flag(tmp_path: Path) -> None:
    write_shards(image_records(12), tmp_path / "a")
    source = f"pipe:cat {tmp_path}/a/000000.tar"
    with pytest.raises(ValueError, match="allow_pipe"):
        RecordStream(source)
    stream = RecordStream(source, StreamSettings(allow_pipe=True))
    assert sorted(_keys(stream, 12)) == [f"p{number:05d}" for number in range(12)]


def test_real_photos_stream(shared: Path, tmp_path: Path) -> None:
    import gzip
    import json
    import zipfile
    from collections.abc import Iterator

    from cclm.images import open_image
    from cclm.types import Record

    def records() -> Iterator[Record]:
        with (
            zipfile.ZipFile(shared / "photos" / "images_128.zip") as images,
            gzip.open(shared / "photos" / "captions.jsonl.gz", "rt") as lines,
        ):
            names = {Path(name).name: name for name in images.namelist()}
            for line, _ in zip(lines, range(50), strict=False):
                row = json.loads(line)
                yield Record(row["key"], images.read(names[row["image"]]), row["captions"], row["parallel"])

    manifest = write_shards(records(), tmp_path / "train", samples_per_shard=20)
    assert manifest.languages["en"] == manifest.languages["zh"] == 50
    stream = RecordStream(tmp_path / "train")
    for located in islice(stream, 50):
        assert max(open_image(located.slots[0].read()).size) == 128
        assert located.record.captions["en"]
    assert not stream.skipped
