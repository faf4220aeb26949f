"""WikiMatrix: sentence pairs mined from Wikipedia, each with a margin score.

Source: files `WikiMatrix.de-en.tsv.gz` (or unpacked) of https://github.com/facebookresearch/LASER, tasks/WikiMatrix;
a line is score<TAB>sentence<TAB>sentence, languages and their order stand in the file's name.
Licence: CC-BY-SA. Size: 34 million pairs with English at the authors' threshold of 1.04; CCLM trained on 19 million.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cclm.data.raw import Skipped, read_lines
from cclm.types import Record

NAME = re.compile(r"WikiMatrix\.([a-z]{2,3})-([a-z]{2,3})\.tsv(\.gz)?")


def tables(source: Path) -> list[Path]:
    """The file itself, or all WikiMatrix files of the folder. Errors: ValueError."""
    found = [source] if source.is_file() else sorted(source.glob("WikiMatrix.*.tsv*"))
    odd = [path for path in found if NAME.fullmatch(path.name) is None]
    if odd:
        raise ValueError(f"wikimatrix: {odd[0]} is not named like WikiMatrix.de-en.tsv.gz, which says its languages")
    if not found:
        raise ValueError(f"wikimatrix: {source} is no WikiMatrix.xx-yy.tsv[.gz] and no folder that holds one")
    return found


def read_table(path: Path, threshold: float) -> Iterator[Record]:
    match = NAME.fullmatch(path.name)
    assert match is not None
    first, second = match[1], match[2]
    with Skipped(path) as skipped:
        for number, line in enumerate(read_lines(path), 1):
            cells = [cell.strip() for cell in line.split("\t")]
            try:
                score = float(cells[0])
            except ValueError:
                skipped.add("no score", f"line {number}")
                continue
            if len(cells) != 3 or not cells[1] or not cells[2]:
                skipped.add("not a score and two sentences", f"line {number}")
            elif not score >= threshold:
                skipped.add(f"score below threshold={threshold}", f"line {number}")
            else:
                yield Record(key=f"{first}-{second}-{number}", parallel={first: cells[1], second: cells[2]})


def records(source: Path, *, threshold: float = 1.04) -> Iterator[tuple[str, Record]]:
    """Yield ("train", record) of the pairs that score at least `threshold`."""
    for path in tables(source):
        for record in read_table(path, threshold):
            yield "train", record
