"""Sentences and their translations from tab-separated files whose header line names the languages.

Source: any such file `.tsv` or `.tsv.gz`, or a folder of them; licence and size are those of your data.
Every line is one sentence in each language of the header; a cell may be empty, two must be filled.
All of it goes to one split, `train` unless said otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cclm.data.raw import Skipped, read_lines, record_key
from cclm.types import Record

LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")


def tables(source: Path) -> list[Path]:
    """The file itself, or all tables of the folder in order of name."""
    if source.is_file():
        return [source]
    found = sorted([*source.glob("*.tsv"), *source.glob("*.tsv.gz")])
    if not found:
        raise ValueError(f"parallel_text: {source} is no .tsv[.gz] file and no folder that holds one")
    return found


def header(path: Path, line: str) -> list[str]:
    """The languages that the first line names. Errors: ValueError."""
    languages = line.split("\t")
    if len(languages) < 2 or not all(map(LANGUAGE.fullmatch, languages)):
        raise ValueError(
            f"parallel_text: the first line of {path} must name at least two languages, such as en<TAB>de, "
            f"and reads {line[:60]!r}: add such a line"
        )
    if len(set(languages)) < len(languages):
        raise ValueError(f"parallel_text: the first line of {path} names a language twice: {' '.join(languages)}")
    return languages


def read_table(path: Path) -> Iterator[Record]:
    stem = record_key(path.name.removesuffix(".gz").removesuffix(".tsv"))
    lines = read_lines(path)
    languages = header(path, next(lines, ""))
    with Skipped(path) as skipped:
        for number, line in enumerate(lines, 2):
            cells = [cell.strip() for cell in line.split("\t")]
            parallel = {language: cell for language, cell in zip(languages, cells, strict=False) if cell}
            if len(cells) != len(languages):
                skipped.add(f"not {len(languages)} cells", f"line {number}")
            elif len(parallel) < 2:
                skipped.add("fewer than two languages", f"line {number}")
            else:
                yield Record(key=f"{stem}-{number}", parallel=parallel)


def records(source: Path, *, split: str = "train") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), table by table. Bad lines are left out, counted and logged."""
    for path in tables(source):
        for record in read_table(path):
            yield split, record
