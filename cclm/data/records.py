"""Record <-> members of a shard. The decoder table is ours: jpg, png, webp, json and txt; nothing else is ever decoded.

An image record is `key.{jpg,png,webp}`, perhaps `key.1.jpg` to `key.7.jpg`, and `key.json` with any of
`"captions": {lang: [text, ..]}`, `"parallel": {lang: sentence}`,
`"statements": [{"text": {lang: text}, "labels": {label: weight}}, ..]`,
`"regions": [{"box": [left, top, width, height], "captions": {lang: [..]}, "attributes": {lang: [word, ..]}}, ..]`
and `"size": [width, height]` of the image in pixels, which boxes are measured in.
A text member is `key.json {"sentences": [{lang: sentence}, ..]}`; img2dataset's `txt` and `json {"caption"}` read too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cclm.errors import SampleError
from cclm.images import check_header
from cclm.types import Record, Region, Statement

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})
TEXT_SUFFIXES = frozenset({"json", "txt"})
MEMBER_BYTES = 64 * 2**20  # one member: a 64 megapixel jpeg is about half of this
TEXT_BYTES = 16 * 2**20  # one json or txt: parsed, it takes some ten times as much memory
SAMPLE_BYTES = 96 * 2**20  # all members of one sample
MOST_OTHERS = 7  # images after the first

_KEY = re.compile(r"[^./#\s][^.#\s]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")
_LARGEST = 2**31  # of a size, coordinate or weight: past it a number is damage


def image_suffix(image: bytes) -> str | None:
    """The member suffix of an encoded image by its first bytes, None for formats that shards do not hold."""
    if image[:3] == b"\xff\xd8\xff":
        return "jpg"
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return None


def split_suffix(suffix: str) -> tuple[int, str]:
    """The image's number and the kind of a member: `jpg` -> (0, "jpg"), `2.png` -> (2, "png"), `json` -> (0, "json").

    Errors: SampleError for a member that the decoder table does not name.
    """
    number, dot, kind = suffix.rpartition(".")
    if suffix in IMAGE_SUFFIXES or suffix in TEXT_SUFFIXES:
        return 0, suffix
    if kind in IMAGE_SUFFIXES and re.fullmatch(r"[1-9]", number):
        if int(number) > MOST_OTHERS:
            raise SampleError(f"more than {MOST_OTHERS} images after the first")
        return int(number), kind
    shown = re.sub(r"[^\w.+-]", "?", suffix)[:16]  # a foreign name must not write our log lines
    raise SampleError(f"unknown member .{shown}" if suffix else "member without a suffix")


def parse_json(data: bytes | str) -> Any:
    """A JSON value whose texts are text: "\\ud800" alone is none, and no tokenizer takes it. Errors: SampleError."""
    escaped = b"\\u" if isinstance(data, bytes) else "\\u"
    try:
        value = json.loads(data)
        if escaped in data:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and UnicodeEncodeError are ValueErrors
        raise SampleError("json not readable") from error
    return value


def _parse_json(data: bytes) -> dict[str, Any]:
    value = parse_json(data)
    if not isinstance(value, dict):
        raise SampleError("json is not an object")
    return value


def parse_text(data: bytes) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise SampleError("txt is not UTF-8") from error


def _captions(value: Any, name: str = "captions") -> dict[str, list[str]]:
    if not isinstance(value, dict):
        raise SampleError(f"{name} are not {{language: [text, ..]}}")
    captions: dict[str, list[str]] = {}
    for language, texts in value.items():
        if not isinstance(texts, list):
            raise SampleError(f"{name} are not {{language: [text, ..]}}")
        try:
            whole = all(map(str.strip, texts))  # without a loop of our own: this runs for every record of every epoch
        except TypeError as error:
            raise SampleError(f"{name} are not {{language: [text, ..]}}") from error
        kept = texts if whole else [text for text in texts if text.strip()]
        if kept:
            captions[language] = kept
    return captions


def _parallel(value: Any, name: str = "sentences") -> dict[str, str]:
    if not isinstance(value, dict):
        raise SampleError(f"{name} are not {{language: text}}")
    try:
        whole = all(map(str.strip, value.values()))
    except TypeError as error:
        raise SampleError(f"{name} are not {{language: text}}") from error
    return value if whole else {language: text for language, text in value.items() if text.strip()}


def _items(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise SampleError(f"{name} are not a list of objects")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST  # not true or false, not NaN


def _statement(item: dict[str, Any]) -> Statement:
    labels = item.get("labels")
    if not isinstance(labels, dict) or not labels or not all(map(str.strip, labels)):
        raise SampleError("labels of a statement are not {label: weight}")
    if not all(_is_number(weight) and weight > 0 for weight in labels.values()):
        raise SampleError("weight of a label is not above 0")
    texts = _parallel(item.get("text"), "texts of a statement")
    if not texts:
        raise SampleError("statement without a text")
    return Statement(texts, {label: float(weight) for label, weight in labels.items()})


def _region(item: dict[str, Any], size: tuple[int, int]) -> Region:
    box = item.get("box")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise SampleError("box of a region is not [left, top, width, height]")
    left, top, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise SampleError("box of a region without extent")
    if left >= size[0] or top >= size[1] or left + width <= 0 or top + height <= 0:
        raise SampleError("box of a region outside the image")
    captions = _captions(item.get("captions"), "captions of a region")
    if not captions:
        raise SampleError("region without a caption")
    attributes = _captions(item.get("attributes") or {}, "attributes of a region")
    return Region((left, top, width, height), captions, attributes)


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and 0 < v < _LARGEST for v in value):
        raise SampleError("size is not [width, height]")
    return value[0], value[1]


def decode_image_record(
    key: str,
    image: bytes,
    texts: Mapping[str, bytes],
    language: str = "en",
    others: tuple[bytes, ...] = (),
    bare: bool = False,
) -> Record:
    """One image record. `texts`: suffix (json, txt) -> bytes; `language` is that of captions which name none.

    `bare`: a record may have no text at all, as pictures to be searched need none.

    Errors: SampleError, e.g. `json without captions`.
    """
    fields = _parse_json(texts["json"]) if "json" in texts else {}
    captions = _captions(fields.get("captions") or {})
    parallel = _parallel(fields.get("parallel") or {})
    statements = tuple(map(_statement, _items(fields.get("statements") or [], "statements")))
    regions = _items(fields.get("regions") or [], "regions")
    if not (captions or parallel or statements or regions):
        caption = fields.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            caption = parse_text(texts["txt"]) if "txt" in texts else ""
        if not caption.strip() and not bare:
            raise SampleError("json without captions" if "json" in texts else "image without captions")
        captions = {language: [caption]} if caption.strip() else {}
        return Record(key, image, captions, others=others)  # a foreign json: no other field of it is ours
    size = _size(fields["size"]) if "size" in fields else None
    if regions and size is None:
        raise SampleError("regions without the image's size")
    found = tuple(_region(item, size) for item in regions) if size is not None else ()
    return Record(key, image, captions, parallel, others, statements, found, size)


def decode_text_records(key: str, data: bytes) -> list[Record]:
    """The rows of a text member, keyed `key#row`. Errors: SampleError."""
    fields = _parse_json(data)
    rows = fields.get("sentences")
    if rows is None:
        raise SampleError("json without captions or sentences")
    if not isinstance(rows, list):
        raise SampleError("sentences are not a list")
    return [Record(f"{key}#{row}", parallel=_parallel(value)) for row, value in enumerate(rows)]


def is_language(code: str) -> bool:
    return _LANGUAGE.fullmatch(code) is not None


def languages_of(record: Record) -> set[str]:
    """Every language that the record has a text in."""
    regions = [texts for region in record.regions for texts in (region.captions, region.attributes)]
    return set().union(record.captions, record.parallel, *(each.texts for each in record.statements), *regions)


def texts_of(record: Record) -> Iterator[tuple[str, str]]:
    """(language, text) of all its texts: captions, sentences, statements, regions; no labels, no attributes."""
    for captions in (record.captions, *(region.captions for region in record.regions)):
        yield from ((language, text) for language, texts in captions.items() for text in texts)
    for sentences in (record.parallel, *(statement.texts for statement in record.statements)):
        yield from sentences.items()


def _check_texts(record: Record) -> None:
    for language in languages_of(record):
        if not is_language(language):
            raise ValueError(
                f"record {record.key!r}: language {language!r} is not a lower-case code like 'en' or 'pt-br'; rename it"
            )
    if not (any(record.captions.values()) or any(record.parallel.values()) or record.statements or record.regions):
        raise ValueError(
            f"record {record.key!r} has neither captions nor parallel sentences, statements or regions; the recipe must"
            " skip it"
        )


def _image_members(record: Record) -> dict[str, bytes]:
    """Suffix -> image, of all images of a record."""
    assert record.image is not None
    if len(record.others) > MOST_OTHERS:
        raise ValueError(
            f"record {record.key!r}: {len(record.others)} images after the first; split it, {MOST_OTHERS} are allowed"
        )
    members = {}
    for number, image in enumerate((record.image, *record.others)):
        suffix = image_suffix(image)
        if suffix is None:
            raise ValueError(
                f"record {record.key!r}: its image is neither jpeg, png nor webp; convert it in the recipe"
            )
        if len(image) > MEMBER_BYTES:
            raise ValueError(f"record {record.key!r}: image of {len(image)} bytes is over {MEMBER_BYTES}; shrink it")
        members[f"{number}.{suffix}" if number else suffix] = image
    return members


def encode_image_record(record: Record) -> dict[str, bytes]:
    """Suffix -> bytes of the members of an image record. Errors: ValueError naming the record."""
    if not _KEY.fullmatch(record.key):
        raise ValueError(
            f"record key {record.key!r}: '.', '#', blanks and a leading '/' are not allowed; put '_' there"
        )
    _check_texts(record)
    members = _image_members(record)
    fields: dict[str, Any] = {"captions": record.captions}
    if record.parallel:
        fields["parallel"] = record.parallel
    if record.statements:
        fields["statements"] = [{"text": each.texts, "labels": each.labels} for each in record.statements]
    if record.regions:
        fields["regions"] = [_region_fields(region) for region in record.regions]
    if record.size is not None:
        fields["size"] = record.size
    members["json"] = _dump(fields)
    _check_readable(record, members)
    return members


def _region_fields(region: Region) -> dict[str, Any]:
    fields = {"box": region.box, "captions": region.captions}
    return fields | {"attributes": region.attributes} if region.attributes else fields


def _check_readable(record: Record, members: Mapping[str, bytes]) -> None:
    """What the reader would leave out must not be written: its own rules are asked. Errors: ValueError."""
    total = sum(map(len, members.values()))
    if len(members["json"]) > TEXT_BYTES or total > SAMPLE_BYTES:
        raise ValueError(
            f"record {record.key!r}: {total} bytes, {len(members['json'])} of them json; shrink or split it, "
            f"{SAMPLE_BYTES} and {TEXT_BYTES} are allowed"
        )
    if record.statements or record.regions or record.size is not None:
        try:
            decode_image_record(record.key, b"", members)
            if record.size is not None and check_header(record.image or b"") != tuple(record.size):
                raise SampleError("size is not that of the image")
        except SampleError as error:
            raise ValueError(f"record {record.key!r}: {error.reason}; correct it in the recipe") from None


def encode_text_member(records: Sequence[Record]) -> bytes:
    """The json of many text records. Errors: ValueError naming the record."""
    for record in records:
        _check_texts(record)
        if record.captions or record.statements or record.regions or record.others:
            raise ValueError(
                f"record {record.key!r} has captions, statements, regions or further images but no image; give it one,"
                " or parallel sentences alone"
            )
    data = _dump({"sentences": [record.parallel for record in records]})
    if len(data) > TEXT_BYTES:
        raise ValueError(f"{len(records)} rows take {len(data)} bytes, over {TEXT_BYTES}; lower rows_per_member")
    return data


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
