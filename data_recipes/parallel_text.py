"""Sentences and their translations from tab-separated files whose header line names the languages.

Source: any such file `.tsv` or `.tsv.gz`, or a folder of them; licence and size are those of your data.
Every line is one sentence in each language of the header; a cell may be empty, two must be filled.
All of it goes to one split, `train`.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cclm.types import Record

log = logging.getLogger(__name__)

LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")


def opened(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def tables(source: Path) -> list[Path]:
    """The file itself, or all tables of the folder in order of name."""
    if source.is_file():
        return [source]
    found = sorted([*source.glob("*.tsv"), *source.glob("*.tsv.gz")])
    if not found:
        raise ValueError(f"parallel_text: {source} is no .tsv[.gz] file and no folder that holds one")
    return found


def header(path: Path, line: str) -> list[str]:
    languages = line.rstrip("\r\n").split("\t")
    if len(languages) < 2 or not all(map(LANGUAGE.fullmatch, languages)):
        raise ValueError(
            f"parallel_text: the first line of {path} must name at least two languages, such as en<TAB>de, "
            f"and reads {line[:60].rstrip()!r}: add such a line"
        )
    if len(set(languages)) < len(languages):
        raise ValueError(f"parallel_text: the first line of {path} names a language twice: {' '.join(languages)}")
    return languages


def read_table(path: Path, skipped: Counter[str]) -> Iterator[Record]:
    stem = path.name.removesuffix(".gz").removesuffix(".tsv").replace(".", "_")
    with opened(path) as lines:
        languages = header(path, next(lines, ""))
        for number, line in enumerate(lines, 2):
            cells = [cell.strip() for cell in line.rstrip("\r\n").split("\t")]
            if len(cells) != len(languages):
                skipped[f"not {len(languages)} cells"] += 1
                continue
            parallel = {language: cell for language, cell in zip(languages, cells, strict=True) if cell}
            if len(parallel) < 2:
                skipped["fewer than two languages"] += 1
                continue
            yield Record(key=f"{stem}-{number}", parallel=parallel)


def records(source: Path, *, split: str = "train") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), table by table. Bad lines are skipped, counted and logged."""
    for path in tables(source):
        skipped: Counter[str] = Counter()
        try:
            for record in read_table(path, skipped):
                yield split, record
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"parallel_text: {path} ends early or is no UTF-8 text ({error}): replace it") from None
        for reason, count in skipped.items():
            log.warning("%s: %d lines skipped: %s", path, count, reason)
