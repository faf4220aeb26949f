"""Annotation files of benchmarks -> records: what many files and languages say of one image becomes one record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cclm.data.raw import Skipped, open_images, read_json_items, read_json_members, read_lines
from cclm.data.records import parse_json
from cclm.errors import SampleError
from cclm.types import Record, Statement


@dataclass(frozen=True)
class Row:
    """What one row of a file says of an image, or of several: captions, or a statement and what holds of it."""

    split: str
    key: str  # of the record: equal for rows about the same images
    images: tuple[str, ...]  # their names
    language: str
    texts: tuple[str, ...]  # captions, or one statement
    statement: str = ""  # its id: with equal labels, rows of one id are one statement in several languages
    labels: dict[str, float] = field(default_factory=dict)


Parse = Callable[[str, dict[str, Any]], Row]  # place of a row in its file (a key, in a JSON object), and the row


def annotation_files(source: Path, *patterns: str) -> list[Path]:
    """The files below `source` whose names match, without machine translations, as IGLUE names these."""
    found = {path for pattern in patterns for path in source.rglob(pattern) if path.is_file()}
    return sorted(
        path
        for path in found
        if "annotations_machine-translate" not in path.relative_to(source).parts and not path.stem.endswith("_gmt")
    )


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and text of every line, which `parsed` parses."""
    return ((f"line {number}", line) for number, line in enumerate(read_lines(path), 1))


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and row of a file that is one JSON list, or one JSON object, whose keys are the places."""
    with open(path, "rb") as handle:
        if handle.read(64).lstrip().startswith(b"{"):
            return read_json_members(path)
    return ((f"row {number}", row) for number, row in enumerate(read_json_items(path), 1))


def parsed(path: Path, rows: Iterable[tuple[str, Any]], parse: Parse) -> Iterator[Row]:
    """The rows of a file; what `parse` refuses with a SampleError is left out, counted and logged."""
    with Skipped(path) as skipped:
        for place, given in rows:
            try:
                row = parse_json(given) if isinstance(given, str) else given
                if not isinstance(row, dict):
                    raise SampleError("no JSON object")
                yield parse(place, row)
            except SampleError as error:
                skipped.add(error.reason, place)


def unicode_text(value: Any) -> str:
    """A text or whole number as text without blanks around it; "" for anything else. Errors: SampleError."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    try:
        str(value).encode()  # "\ud800" alone is no text, and no tokenizer takes it
    except UnicodeEncodeError:
        raise SampleError("text is no Unicode") from None
    return str(value).strip()


def text(row: dict[str, Any], *names: str) -> str:
    """The first of the named fields that holds text. Errors: SampleError."""
    found = next(filter(None, (unicode_text(row.get(name)) for name in names)), None)
    if found is None:
        raise SampleError(f"no {names[0]}")
    return found


@dataclass
class _Gathered:
    """What has been read of one record."""

    images: tuple[str, ...]
    rows: int = 0
    captions: dict[str, list[str]] = field(default_factory=dict)
    statements: dict[tuple[str, frozenset[tuple[str, float]]], Statement] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Errors: SampleError for what cannot stand beside the rest."""
        if row.images != self.images:
            raise SampleError("the record of this key is about other images")
        if row.labels:
            about = self.statements.setdefault(
                (row.statement, frozenset(row.labels.items())), Statement({}, row.labels)
            )
            if row.language in about.texts:
                raise SampleError(f"the statement stands there twice in language {row.language}")
            about.texts[row.language] = row.texts[0]
        else:
            self.captions.setdefault(row.language, []).extend(row.texts)
        self.rows += 1


def _gather(source: Path, rows: Iterable[Row]) -> dict[tuple[str, str], _Gathered]:
    """Everything by split and key: rows about one image stand in files of several languages."""
    found: dict[tuple[str, str], _Gathered] = {}
    with Skipped(source) as skipped:
        for row in rows:
            try:
                found.setdefault((row.split, row.key), _Gathered(row.images)).add(row)
            except SampleError as error:
                skipped.add(error.reason, f"{row.key} {row.statement}".strip())
    return found


def gather(source: Path, rows: Iterable[Row], images: str = "", by_name: bool = False) -> Iterator[tuple[str, Record]]:
    """Yield (split, record) in order of first mention, with the pictures below `images`, or else below `source`.

    Rows whose image is missing, damaged or too large are left out, counted and logged. `by_name`: where nothing
    lies at an image's path, look for its bare name; only for data whose names are unique.
    """
    found = _gather(source, rows)
    with open_images(Path(images) if images else source) as pictures, Skipped(source) as skipped:
        for (split, key), gathered in found.items():
            try:
                image, *others = (
                    pictures.read(PurePosixPath(name).name if by_name and name not in pictures else name)
                    for name in gathered.images
                )
            except SampleError as error:
                skipped.add(error.reason, " and ".join(gathered.images), gathered.rows)
                continue
            yield (
                split,
                Record(
                    key=key,
                    image=image,
                    captions=gathered.captions,
                    others=tuple(others),
                    statements=tuple(gathered.statements.values()),
                ),
            )
