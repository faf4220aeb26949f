"""Where a task's items lie and how they are read: rows of JSON, or lines that go with a list of images, per language.

Every source reads a benchmark's files as these ship. What is wrong with a row or a file ends the reading with one line.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from cclm.data.annotations import json_lines, json_rows
from cclm.data.raw import open_zip, read_lines
from cclm.data.records import parse_json
from cclm.errors import SampleError
from cclm.evaluation.items import Caption, Described, Item, Sentence

ReadRow: TypeAlias = Callable[[str, dict[str, Any]], Item | Iterable[Item]]  # place in the file, row


@dataclass(frozen=True)
class DataFolder:
    """The folder that the benchmarks' files lie in: the bundle's own, or IGLUE's `datasets`."""

    root: Path
    _INSIDE: ClassVar[tuple[str, ...]] = ("", "iglue", "datasets")

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ValueError(f"--data {self.root} is no folder; give the one that holds iglue/ or XVNLI/, xGQA/ ..")

    def find(self, name: str) -> Path | None:
        """The file of this name, or a zip of it, or the folder if it ends in a slash, where there is one."""
        if name.endswith("/"):
            return next(filter(Path.is_dir, (self.root / inside / name for inside in self._INSIDE)), None)
        forms = (self.root / inside / form for inside in self._INSIDE for form in (name, f"{name}.zip"))
        return next(filter(Path.is_file, forms), None)

    def path(self, name: str) -> Path:
        """Errors: ValueError naming the file that is missing."""
        found = self.find(name)
        if found is None:
            raise ValueError(f"{self.root} has no {name}; `cclm iglue check --data {self.root}` tells what is there")
        return found


class Source(ABC):
    """Where a split lies in one or several languages, and how it is read."""

    languages: tuple[str, ...]

    @abstractmethod
    def files(self, language: str) -> tuple[str, ...]:
        """The files that a language needs, below the data folder."""

    @abstractmethod
    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        """Items in the order of the files. Errors: ValueError naming file and row."""

    def wording(self, language: str) -> tuple[str, ...]:
        """Files that hold the texts where these may lack: one of them is enough."""
        return ()


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of every line of a .jsonl file, or of a JSON list or object, whose keys are the places.

    Either may be zipped, as the training sets of IGLUE are. Errors: ValueError naming file and row.
    """
    read = zipped if path.suffix == ".zip" else json_lines if path.suffix == ".jsonl" else json_rows
    for place, given in read(path):
        try:
            row = parse_json(given) if isinstance(given, str) else given
        except SampleError as error:
            raise bad_row(path, place, error) from None
        if not isinstance(row, dict):
            raise bad_row(path, place, SampleError("no JSON object"))
        yield place, row


def zipped(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and row, or line, of the one file in a zip that has its name. Errors: ValueError naming the zip."""
    with open_zip(path) as archive:
        members = [name for name in archive.namelist() if name.rpartition("/")[2] == path.stem]
        if len(members) != 1:
            raise ValueError(f"{path} holds no single {path.stem}; fetch it again")
        lines = read_lines(path, archive.open(members[0]))
        if path.stem.endswith(".jsonl"):
            yield from ((f"line {number}", line) for number, line in enumerate(lines, 1))
            return
        try:
            whole = json.loads("\n".join(lines))
        except ValueError as error:
            raise ValueError(f"{path} holds no JSON ({error}): fetch it again") from None
        rows = enumerate(whole, 1) if isinstance(whole, list) else whole.items() if isinstance(whole, dict) else ()
        yield from ((f"row {place}" if isinstance(place, int) else place, row) for place, row in rows)


def bad_row(path: Path, place: str, error: SampleError) -> ValueError:
    return ValueError(f"{path}, {place}: {error.reason}; fetch the file again")


@dataclass(frozen=True)
class Rows(Source):
    """One file of JSON lines, or one JSON list or object, per language: `path` holds {language}.

    `row` gets the row's place (its key, in a JSON object) and the row; what it refuses with a SampleError ends the
    reading, as a test set is whole or is none.
    """

    path: str
    row: ReadRow
    languages: tuple[str, ...]

    def files(self, language: str) -> tuple[str, ...]:
        return (self.path.format(language=language),)

    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        path = data.path(self.files(language)[0])
        for place, row in rows_of(path):
            try:
                found = self.row(place, row)
                items = tuple(found) if isinstance(found, Iterable) else (found,)
            except SampleError as error:
                raise bad_row(path, place, error) from None
            yield from items


@dataclass(frozen=True)
class Numbered(Source):
    """The captions of another source, whose rows have no ids of their own: an image's are numbered from 0."""

    rows: Source

    @property
    def languages(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.rows.languages

    def files(self, language: str) -> tuple[str, ...]:
        return self.rows.files(language)

    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        seen: Counter[str] = Counter()
        for caption in self.rows.read(data, language):
            assert isinstance(caption, Caption)
            yield replace(caption, id=f"{caption.image}#{seen[caption.image]}")
            seen[caption.image] += 1


@dataclass(frozen=True)
class Grouped(Source):
    """The captions of another source, an image's together, as what a caption of a model is compared with.

    Its id is the image's name without the ending, as files of predictions call it.
    """

    rows: Source

    @property
    def languages(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.rows.languages

    def files(self, language: str) -> tuple[str, ...]:
        return self.rows.files(language)

    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        texts: dict[str, list[str]] = {}
        for caption in self.rows.read(data, language):
            assert isinstance(caption, Caption)
            texts.setdefault(caption.image, []).append(caption.text)
        yield from (Described(image.rpartition(".")[0] or image, image, tuple(own)) for image, own in texts.items())


def aligned(data: DataFolder, names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The lines of several text files that belong together. Errors: ValueError where one file has more of them."""
    paths = [data.path(name) for name in names]
    columns = [list(read_lines(path)) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        if len(column) != len(columns[0]):
            raise ValueError(
                f"{path} has {len(column):,} lines and {paths[0]} {len(columns[0]):,}, which should go with each "
                "other; fetch both again"
            )
    return zip(*columns, strict=True)


@dataclass(frozen=True)
class Lines(Source):
    """Text files, plain or gzipped, whose every line is about the image that a list names in the same line.

    `texts`: language -> its files; several give an image several captions. An image's name ends before a `#`.
    """

    images: str
    texts: Mapping[str, tuple[str, ...]]

    @property
    def languages(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.texts)

    def files(self, language: str) -> tuple[str, ...]:
        return (self.images, *self.texts[language])

    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        for image, *texts in aligned(data, self.files(language)):
            for number, text in enumerate(texts):
                yield Caption(f"{image}#{number}", image.partition("#")[0].strip(), text)


@dataclass(frozen=True)
class Parallel(Source):
    """Two text files whose lines are a sentence and its English translation: language -> (its file, the English)."""

    texts: Mapping[str, tuple[str, str]]

    @property
    def languages(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.texts)

    def files(self, language: str) -> tuple[str, ...]:
        return self.texts[language]

    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        for number, (text, english) in enumerate(aligned(data, self.files(language)), 1):
            yield Sentence(str(number), text, english)


@dataclass(frozen=True)
class PerLanguage(Source):
    """A source for each language, where not all ship in one form."""

    sources: Mapping[str, Source]

    @property
    def languages(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.sources)

    def files(self, language: str) -> tuple[str, ...]:
        return self.sources[language].files(language)

    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        return self.sources[language].read(data, language)
