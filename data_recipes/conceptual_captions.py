"""Conceptual Captions 3M or 12M: web pictures with their English captions, and machine translations of these.

Source: Google's lists of URL and caption (https://github.com/google-research-datasets/conceptual-captions and
conceptual-12m), fetched by img2dataset with `--output_format webdataset`: a folder of tars holding jpg, txt and json.
Translations (UC2 made them for CC3M: de fr cs ja zh) lie anywhere below the same folder in either form:
  train_imageId2Ann_de.tsv   UC2's: image id<TAB>url<TAB>translated caption<TAB>"success" or "fail"
  *.jsonl[.gz]               {"url": "..", "captions": {"de": "..", "fr": ".."}}
They are joined to the pictures by url. Licence: captions free for any use, pictures as their owners say.
Size: 3.3 or 12.4 million urls, of which about 2.8 and 10 million are still to be had; 150 to 600 GB at 256 pixels.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cclm.data.raw import Skipped, read_lines, record_key
from cclm.data.records import SampleError, decode_image_record
from cclm.data.tars import Sample, ShardFile, index_shard
from cclm.types import Record

UC2_NAME = re.compile(r".*imageId2Ann_([a-z]{2,3})\.tsv(\.gz)?")


def url_hash(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=12).digest()


def read_uc2(path: Path, language: str) -> Iterator[tuple[str, str, str]]:
    """(url, language, caption) of one of UC2's files."""
    with Skipped(path) as skipped:
        for number, row in enumerate(csv.reader(read_lines(path), delimiter="\t"), 1):
            if len(row) != 4:
                skipped.add("not 4 cells", f"line {number}")
            elif row[3].strip() == "fail" or not row[2].strip():
                skipped.add("picture or translation failed", f"line {number}")
            else:
                yield row[1].strip(), language, row[2].strip()


def read_jsonl(path: Path) -> Iterator[tuple[str, str, str]]:
    """(url, language, caption) of a file of json lines."""
    with Skipped(path) as skipped:
        for number, line in enumerate(read_lines(path), 1):
            try:
                row = json.loads(line)
                url, captions = row["url"], row["captions"]
                found = [(url, language, text.strip()) for language, text in captions.items() if text.strip()]
            except (ValueError, KeyError, TypeError, AttributeError):
                skipped.add("not of the form {url, captions: {language: text}}", f"line {number}")
                continue
            yield from found


def read_translations(source: Path) -> Iterator[tuple[str, str, str]]:
    for path in sorted(source.rglob("*")):
        uc2 = UC2_NAME.fullmatch(path.name)
        if uc2:
            yield from read_uc2(path, uc2[1])
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            yield from read_jsonl(path)


def index_translations(source: Path, database: sqlite3.Connection) -> None:
    """Translations by hash of their url, on disk: 14 million of them would fill the memory of a small machine."""
    database.execute("CREATE TABLE translation (url BLOB, language TEXT, caption TEXT)")
    rows = ((url_hash(url), language, caption) for url, language, caption in read_translations(source))
    database.executemany("INSERT INTO translation VALUES (?, ?, ?)", rows)
    database.execute("CREATE INDEX by_url ON translation (url)")


def read_sample(sample: Sample, shard: str, database: sqlite3.Connection) -> Record:
    """One picture with its captions. Errors: SampleError."""
    if sample.bad is not None:
        raise SampleError(sample.bad)
    if sample.image is None:
        raise SampleError("no image")
    texts = {suffix: slot.read() for suffix, slot in sample.texts.items()}
    # Keys are unique within a download; the shard's name keeps those of two downloads apart.
    record = decode_image_record(record_key(f"{shard}-{sample.key}"), sample.image.read(), texts)
    url = json.loads(texts.get("json", b"{}")).get("url")
    if isinstance(url, str):
        query = "SELECT language, caption FROM translation WHERE url = ? ORDER BY language, caption"
        for language, caption in database.execute(query, (url_hash(url),)):
            known = record.captions.setdefault(language, [])
            if caption not in known:
                known.append(caption)
    return record


def records(source: Path, *, split: str = "train") -> Iterator[tuple[str, Record]]:
    """Yield (split, record) shard by shard. Samples without picture or caption are left out, counted and logged."""
    shards = sorted(source.rglob("*.tar"))
    if not shards:
        raise ValueError(
            f"conceptual_captions: no .tar below {source}: fetch pictures with `img2dataset --output_format webdataset`"
        )
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(Path(folder) / "translations")) as database:
        database.execute("PRAGMA synchronous = OFF")  # a scratch file: lost with the process anyway
        index_translations(source, database)
        for path in shards:
            with Skipped(path) as skipped:
                index = index_shard(ShardFile(str(path)))
                if index.damage:
                    raise ValueError(f"conceptual_captions: {path}: {index.damage}: fetch this shard again")
                name = path.relative_to(source).with_suffix("").as_posix()
                for sample in index.samples:
                    try:
                        yield split, read_sample(sample, name, database)
                    except SampleError as error:
                        skipped.add(error.reason, sample.key)
