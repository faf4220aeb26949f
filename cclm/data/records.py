"""Record <-> members of a shard. The decoder table is ours: jpg, png, webp, json and txt; nothing else is ever decoded.

An image record is `key.{jpg,png,webp}` + `key.json {"captions": {lang: [..]}, "parallel": {lang: sentence}}`;
a text member is `key.json {"sentences": [{lang: sentence}, ..]}`; img2dataset's `txt` and `json {"caption"}` read too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cclm.errors import SampleError
from cclm.types import Record

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})
TEXT_SUFFIXES = frozenset({"json", "txt"})
MEMBER_BYTES = 64 * 2**20  # one member: a 64 megapixel jpeg is about half of this
TEXT_BYTES = 16 * 2**20  # one json or txt: parsed, it takes some ten times as much memory
SAMPLE_BYTES = 96 * 2**20  # all members of one sample

_KEY = re.compile(r"[^./#\s][^.#\s]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")


def image_suffix(image: bytes) -> str | None:
    """The member suffix of an encoded image by its first bytes, None for formats that shards do not hold."""
    if image[:3] == b"\xff\xd8\xff":
        return "jpg"
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return None


def check_suffix(suffix: str) -> None:
    """Raise SampleError for a member that the decoder table does not name."""
    if suffix not in IMAGE_SUFFIXES and suffix not in TEXT_SUFFIXES:
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


def _parse_text(data: bytes) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise SampleError("txt is not UTF-8") from error


def _captions(value: Any) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        raise SampleError("captions are not {language: [text, ..]}")
    captions: dict[str, list[str]] = {}
    for language, texts in value.items():
        if not isinstance(texts, list):
            raise SampleError("captions are not {language: [text, ..]}")
        try:
            whole = all(map(str.strip, texts))  # without a loop of our own: this runs for every record of every epoch
        except TypeError as error:
            raise SampleError("captions are not {language: [text, ..]}") from error
        kept = texts if whole else [text for text in texts if text.strip()]
        if kept:
            captions[language] = kept
    return captions


def _parallel(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise SampleError("sentences are not {language: text}")
    try:
        whole = all(map(str.strip, value.values()))
    except TypeError as error:
        raise SampleError("sentences are not {language: text}") from error
    return value if whole else {language: text for language, text in value.items() if text.strip()}


def decode_image_record(key: str, image: bytes, texts: Mapping[str, bytes], language: str = "en") -> Record:
    """One image record. `texts`: suffix (json, txt) -> bytes; `language` is that of captions which name none.

    Errors: SampleError, e.g. `json without captions`.
    """
    fields = _parse_json(texts["json"]) if "json" in texts else {}
    captions = _captions(fields.get("captions") or {})
    parallel = _parallel(fields.get("parallel") or {})
    if not captions and not parallel:
        caption = fields.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            caption = _parse_text(texts["txt"]) if "txt" in texts else ""
        if not caption.strip():
            raise SampleError("json without captions" if "json" in texts else "image without captions")
        captions = {language: [caption]}
    return Record(key, image, captions, parallel)


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


def _check_texts(record: Record) -> None:
    for language in (*record.captions, *record.parallel):
        if not is_language(language):
            raise ValueError(
                f"record {record.key!r}: language {language!r} is not a lower-case code like 'en' or 'pt-br'; rename it"
            )
    if not any(record.captions.values()) and not any(record.parallel.values()):
        raise ValueError(f"record {record.key!r} has neither captions nor parallel sentences; the recipe must skip it")


def encode_image_record(record: Record) -> dict[str, bytes]:
    """Suffix -> bytes of the members of an image record. Errors: ValueError naming the record."""
    assert record.image is not None
    if not _KEY.fullmatch(record.key):
        raise ValueError(
            f"record key {record.key!r}: '.', '#', blanks and a leading '/' are not allowed; put '_' there"
        )
    _check_texts(record)
    suffix = image_suffix(record.image)
    if suffix is None:
        raise ValueError(f"record {record.key!r}: its image is neither jpeg, png nor webp; convert it in the recipe")
    if len(record.image) > MEMBER_BYTES:
        raise ValueError(f"record {record.key!r}: image of {len(record.image)} bytes is over {MEMBER_BYTES}; shrink it")
    fields: dict[str, Any] = {"captions": record.captions}
    if record.parallel:
        fields["parallel"] = record.parallel
    return {suffix: record.image, "json": _dump(fields)}


def encode_text_member(records: Sequence[Record]) -> bytes:
    """The json of many text records. Errors: ValueError naming the record."""
    for record in records:
        _check_texts(record)
    data = _dump({"sentences": [record.parallel for record in records]})
    if len(data) > TEXT_BYTES:
        raise ValueError(f"{len(records)} rows take {len(data)} bytes, over {TEXT_BYTES}; lower rows_per_member")
    return data


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
