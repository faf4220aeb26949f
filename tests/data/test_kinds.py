"""Statements, several images and regions in shards: written, read, counted, checked; damage has few counted reasons."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.data.build import read_sentences
from cclm.data.check import check_shards
from cclm.data.records import decode_image_record, languages_of, texts_of
from cclm.data.shards import read_records, write_shards
from cclm.data.stream import RecordStream
from cclm.errors import SampleError
from cclm.types import Record, Region, Statement
from tests.data.conftest import picture
from tests.data.test_shards import write_tar

STATEMENTS = (
    Statement({"en": "a dog runs", "fr": "un chien court"}, {"entailment": 1.0}),
    Statement({"en": "how many?"}, {"two": 0.75, "2": 0.25}),
)
REGIONS = (
    Region((1.5, 2.0, 10.0, 12.5), {"en": ["dog", "a dog"], "de": ["Hund"]}, {"en": ["red"], "ja": ["赤い"]}),
    Region((-5.0, 30.0, 20.0, 100.0), {"en": ["grass"]}),  # partly outside: what is inside counts
)
KINDS = [
    Record("said", picture(1), statements=STATEMENTS),
    Record("several", picture(1), others=(picture(2), picture(3, kind="PNG")), statements=STATEMENTS[:1]),
    Record("regions", picture(1), {"en": ["all of it"]}, regions=REGIONS, size=(40, 40)),
    Record("all", picture(1), {"en": ["x"]}, {"de": "y"}, (picture(2),), STATEMENTS, REGIONS, (40, 40)),
    Record("plain", picture(1), {"en": ["x"]}),
]


def test_every_kind_round_trips_and_its_languages_count(tmp_path: Path) -> None:
    manifest = write_shards(KINDS, tmp_path / "train", samples_per_shard=2)
    assert list(read_records(tmp_path / "train")) == KINDS
    assert manifest.languages == {"de": 2, "en": 5, "fr": 3, "ja": 2}
    assert write_shards(KINDS, tmp_path / "again", samples_per_shard=2) == manifest
    assert check_shards(tmp_path / "train") == []
    with tarfile.open(tmp_path / "train" / "000000.tar") as tar:
        assert tar.getnames() == ["said.jpg", "said.json", "several.jpg", "several.1.jpg", "several.2.png",
                                  "several.json"]  # fmt: skip


def test_records_without_the_new_fields_have_the_bytes_they_had(tmp_path: Path) -> None:
    """The checksum was recorded before shards knew statements, regions and further images."""
    import hashlib

    def records() -> list[Record]:  # pixels depend on the jpeg library: fixed bytes here
        return [Record(f"k{n}", b"\xff\xd8\xff" + bytes([n]), {"en": [f"a {n}"]}, {"de": f"b {n}"}) for n in range(5)]

    write_shards(records(), tmp_path / "train")
    digest = hashlib.sha256((tmp_path / "train" / "000000.tar").read_bytes()).hexdigest()
    assert digest == "9eab6e9583229b4967cdef52507f7c5616023cddcaa62163bdce18e1c6a6279b"


def test_a_stream_locates_all_images_and_reads_none(tmp_path: Path) -> None:
    write_shards(KINDS, tmp_path / "train")
    stream = RecordStream(tmp_path / "train")
    found = {located.record.key: located for located in (next(stream) for _ in KINDS)}
    for record in KINDS:
        located = found[record.key]
        assert located.record == replace(record, image=b"", others=(b"",) * len(record.others))
        assert tuple(slot.read() for slot in located.slots) == (record.image, *record.others)


def test_webdataset_keeps_the_images_of_a_record_together(tmp_path: Path) -> None:
    import webdataset

    write_shards(KINDS[:2], tmp_path / "train")
    samples = list(webdataset.WebDataset(str(tmp_path / "train" / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["said", "several"]
    assert samples[1]["1.jpg"] == picture(2)


def test_texts_of_all_kinds_reach_the_tokenizer(tmp_path: Path) -> None:
    write_shards(KINDS, tmp_path / "train")
    sentences = read_sentences([str(tmp_path / "train")], 1000, 0)
    assert Counter(sentences["en"])["a dog runs"] == 3 and "grass" in sentences["en"] and "dog" in sentences["en"]
    assert set(sentences) == {"en", "de", "fr"}  # attributes are words, not texts
    assert languages_of(KINDS[2]) == {"en", "de", "ja"}
    assert list(texts_of(KINDS[2])) == [("en", "all of it"), ("en", "dog"), ("en", "a dog"), ("de", "Hund"),
                                        ("en", "grass")]  # fmt: skip


def _statement(**changes: Any) -> dict[str, Any]:
    return {"statements": [{"text": {"en": "x"}, "labels": {"yes": 1.0}, **changes}]}


def _region(**changes: Any) -> dict[str, Any]:
    return {"regions": [{"box": [0, 0, 5, 5], "captions": {"en": ["x"]}, **changes}], "size": [40, 30]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"statements": {"text": {}}}, "statements are not a list of objects"),
        ({"statements": ["x"]}, "statements are not a list of objects"),
        (_statement(text="x"), "texts of a statement are not {language: text}"),
        (_statement(text={"en": ["x"]}), "texts of a statement are not {language: text}"),
        (_statement(text={"en": " "}), "statement without a text"),
        (_statement(labels=["yes"]), "labels of a statement are not {label: weight}"),
        (_statement(labels={}), "labels of a statement are not {label: weight}"),
        (_statement(labels={" ": 1}), "labels of a statement are not {label: weight}"),
        (_statement(labels={"yes": 0}), "weight of a label is not above 0"),
        (_statement(labels={"yes": True}), "weight of a label is not above 0"),
        (_statement(labels={"yes": float("nan")}), "weight of a label is not above 0"),
        (_statement(labels={"yes": 10**400}), "weight of a label is not above 0"),
        ({"regions": "x"}, "regions are not a list of objects"),
        ({**_region(), "size": None}, "size is not [width, height]"),
        ({**_region(), "size": [40.5, 30]}, "size is not [width, height]"),
        ({**_region(), "size": [0, 30]}, "size is not [width, height]"),
        ({"regions": _region()["regions"]}, "regions without the image's size"),
        (_region(box=[0, 0, 5]), "box of a region is not [left, top, width, height]"),
        (_region(box=[0, 0, 5, "5"]), "box of a region is not [left, top, width, height]"),
        (_region(box=[0, 0, 5, 0]), "box of a region without extent"),
        (_region(box=[40, 0, 5, 5]), "box of a region outside the image"),
        (_region(box=[0, -5, 5, 5]), "box of a region outside the image"),
        (_region(captions={"en": "x"}), "captions of a region are not {language: [text, ..]}"),
        (_region(captions={"en": []}), "region without a caption"),
        (_region(attributes=["red"]), "attributes of a region are not {language: [text, ..]}"),
    ],
)
def test_wrong_fields_have_a_reason_each(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(SampleError) as raised:
        decode_image_record("k", b"", {"json": json.dumps(fields).encode()})
    assert raised.value.reason == reason


def test_fields_of_foreign_jsons_are_not_ours() -> None:
    fields = {"caption": "x", "size": "40x30", "statements": None}
    record = decode_image_record("k", b"", {"json": json.dumps(fields).encode()})
    assert record == Record("k", b"", {"en": ["x"]})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            replace(KINDS[0], statements=(Statement({"en": "x"}, {"a": -1.0}),)),
            "weight of a label is not above 0; corr",
        ),
        (
            replace(KINDS[0], statements=(Statement({"English": "x"}, {"a": 1.0}),)),
            "'English' is not a lower-case code",
        ),
        (replace(KINDS[2], regions=(replace(REGIONS[0], attributes={"x": ["y"]}),)), "'x' is not a lower-case code"),
        (replace(KINDS[2], size=None), "regions without the image's size; correct"),
        (replace(KINDS[2], size=(40, 41)), "size is not that of the image; correct"),
        (replace(KINDS[2], regions=(replace(REGIONS[0], box=(50.0, 0.0, 1.0, 1.0)),)), "outside the image; correct"),
        (replace(KINDS[2], regions=(replace(REGIONS[0], box=(5.0, 0.0, 0.0, 1.0)),)), "without extent; correct"),
        (replace(KINDS[1], others=(picture(2),) * 8), "8 images after the first; split it, 7 are allowed"),
        (replace(KINDS[1], others=(b"GIF89a",)), "neither jpeg, png nor webp"),
        (Record("t", parallel={"en": "x"}, statements=STATEMENTS), "but no image; give it one"),
        (Record("p", picture(1)), "neither captions nor parallel sentences, statements or regions"),
    ],
)
def test_the_writer_names_a_record_that_would_not_be_read(tmp_path: Path, record: Record, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        write_shards([record], tmp_path / "train")
    assert f"record {record.key!r}" in str(raised.value) and "\n" not in str(raised.value)


def test_a_record_over_the_caps_is_not_written(tmp_path: Path) -> None:
    from cclm.data.records import SAMPLE_BYTES

    half = b"\xff\xd8\xff" + bytes(SAMPLE_BYTES // 2)
    with pytest.raises(ValueError, match=r"record 'big': \d+ bytes, .* shrink or split it"):
        write_shards([Record("big", half, {"en": ["x"]}, others=(half,))], tmp_path / "train")


def test_missing_and_too_many_images_are_counted(tmp_path: Path) -> None:
    said = json.dumps(_statement()).encode()
    members = {
        "gap.jpg": picture(1), "gap.2.jpg": picture(2), "gap.json": said,
        "headless.1.jpg": picture(1), "headless.json": said,
        "many.jpg": picture(1), "many.8.jpg": picture(2), "many.json": said,
        "twice.jpg": picture(1), "twice.1.jpg": picture(2), "twice.1.png": picture(2, kind="PNG"), "twice.json": said,
        "foreign.jpg": picture(1), "foreign.seg.png": picture(2, kind="PNG"), "foreign.json": said,
        "good.jpg": picture(1), "good.1.webp": picture(2, kind="WEBP"), "good.json": said,
    }  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    skipped: Counter[str] = Counter()
    assert [len(record.others) for record in read_records(tmp_path, skipped=skipped)] == [1]
    assert skipped == {
        "image missing among several": 2,
        "more than 7 images after the first": 1,
        "two images under one key": 1,
        "unknown member .seg.png": 1,
    }
    stream = RecordStream(tmp_path)
    assert next(stream).record.key == "good" and stream.skipped == skipped


def test_check_opens_all_images_and_compares_the_size(tmp_path: Path) -> None:
    broken = picture(2)[:200]
    region = json.dumps({**_region(), "size": [40, 41]}).encode()
    said = json.dumps(_statement()).encode()
    foreign = json.dumps(_statement(text={"English": "x"})).encode()
    write_tar(
        tmp_path / "a.tar",
        {
            "a.jpg": picture(1),
            "a.1.jpg": broken[:20],
            "a.json": said,
            "b.jpg": picture(1),
            "b.json": region,
            "c.jpg": picture(1),
            "c.json": foreign,
        },  # fmt: skip
    )
    assert {str(problem) for problem in check_shards(tmp_path)} == {
        "a.tar: image not readable (1 samples)",
        "a.tar: size is not that of the image (1 samples)",
        "a.tar: language that is no code like en or pt-br (1 samples)",
    }
