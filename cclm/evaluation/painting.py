"""Prompts of a test in several languages, and the pictures that a model paints for them from equal noise.

A `Painter` is anything that turns texts into pictures; painted pictures may be kept, and are then not painted again.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from cclm.errors import SampleError
from cclm.evaluation.encoding import texts_of
from cclm.images import open_image
from cclm.storage import whole_file
from cclm.types import Record

MISMATCHED = "mismatched"  # the row of pictures whose prompts are those of the next picture
PLAN = "plan.json"


class Painter(Protocol):
    """Texts in, pictures out."""

    def __call__(self, texts: Sequence[str], language: str, seed: int) -> list[Image.Image]:
        """A picture for each text. With one seed, the n-th pictures of two calls start from the same noise."""
        ...


@dataclass(frozen=True)
class Prompts:
    """What is to be painted: N prompts in every language, of equal meaning, and what the data shows for each.

    `reference`: the language that the others are compared with, and whose texts pictures must match. `skipped` counts,
    by reason, the records that could not be drawn.
    """

    ids: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]  # language -> N prompts
    pictures: tuple[Image.Image, ...]
    reference: str
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Name of a row of pictures -> language and texts: every language, and the reference's prompts moved by one."""
        moved = self.texts[self.reference][1:] + self.texts[self.reference][:1]
        return {language: (language, texts) for language, texts in self.texts.items()} | {
            MISMATCHED: (self.reference, moved)
        }


def draw_prompts(records: Iterable[Record], languages: Sequence[str], count: int, reference: str, seed: int) -> Prompts:
    """`count` records, drawn by `seed`, that have a picture and a text in every language.

    The text is the parallel sentence, or the first caption where there is none. A record whose text in the reference's
    language came before is left out: nothing could tell the two apart; so is one whose text in another language is the
    reference's, which tells nothing of that language. Errors: ValueError for too few records, and
    where the reference is none of the languages.
    """
    if reference not in languages:
        raise ValueError(f"reference language {reference!r} is none of {', '.join(languages)}; add it to them")
    draw, skipped, told = random.Random(seed), Counter[str](), set()
    kept: list[tuple[Record, dict[str, str]]] = []
    for record in records:
        texts = {language: found[0] for language, found in texts_of(record).items()} | record.parallel
        reason = _unfit(record, texts, languages, told, reference)
        if reason:
            skipped[reason] += 1
            continue
        told.add(texts[reference])
        if len(kept) < count:
            kept.append((record, texts))
        elif (place := draw.randrange(len(told))) < count:
            kept[place] = record, texts
    if len(kept) < max(count, 2):
        left_out = "".join(f"; {number:,} x {reason}" for reason, number in skipped.items())
        raise ValueError(
            f"the data has {len(kept):,} records to draw {count:,} prompts from{left_out}; give 2 prompts to so many"
        )
    draw.shuffle(kept)
    return Prompts(
        tuple(record.key for record, _ in kept),
        {language: tuple(texts[language] for _, texts in kept) for language in languages},
        tuple(_opened(record) for record, _ in kept),
        reference,
        dict(skipped),
    )


def _unfit(
    record: Record, texts: dict[str, str], languages: Sequence[str], told: set[str], reference: str
) -> str | None:
    if record.image is None:
        return "no picture"
    if missing := [language for language in languages if not texts.get(language, "").strip()]:
        return f"no text in {missing[0]}"
    same = [code for code in languages if code != reference and texts[code].casefold() == texts[reference].casefold()]
    if same:
        return f"the same text in {same[0]} as in {reference}"
    return f"the same text in {reference} as another" if texts[reference] in told else None


def _opened(record: Record) -> Image.Image:
    assert record.image is not None
    try:
        return open_image(record.image)
    except SampleError as error:
        raise ValueError(f"record {record.key}: {error}; repair or remove it, then build the data again") from error


@dataclass(frozen=True)
class PaintOptions:
    """`seed`: of the noise. `batch`: pictures at once; as the noise is drawn for a batch, it changes the pictures."""

    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; give 1 picture or more at once")
        if not 0 <= self.seed < 2**63:  # prompts' places are added to it
            raise ValueError(f"seed is {self.seed}; give a number from 0 to 2^63 - 1")


def paint(
    prompts: Prompts, painter: Painter, options: PaintOptions, kept: Kept | None = None
) -> dict[str, list[Image.Image]]:
    """Row -> N pictures: of every language, and `MISMATCHED`. The noise is the same in every row, prompt by prompt.

    Errors: ValueError for a painter that gives another number of pictures, or pictures of several sizes.
    """
    painted: dict[str, list[Image.Image]] = {}
    for row, (language, texts) in prompts.rows.items():
        painted[row] = []
        for first in range(0, len(texts), options.batch):
            batch = texts[first : first + options.batch]
            found = kept.read(row, first, len(batch)) if kept else None
            if found is None:
                found = _checked(painter(batch, language, options.seed + first), len(batch))
                if kept:
                    kept.write(row, first, found)
            painted[row] += found
    sizes = sorted({picture.size for pictures in painted.values() for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(f"pictures of sizes {sizes[0]} and {sizes[-1]} were painted; have all of one size")
    return painted


def _checked(pictures: list[Image.Image], count: int) -> list[Image.Image]:
    if len(pictures) != count or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError(f"the model gave {len(pictures)} pictures for {count} prompts; it must give one for each")
    return [picture.convert("RGB") for picture in pictures]


@dataclass(frozen=True)
class Kept:
    """A folder of painted pictures, `row/00000.png`, and the plan that they were painted by."""

    folder: Path

    @classmethod
    def at(cls, folder: Path, prompts: Prompts, options: PaintOptions, model: dict[str, str]) -> Kept:
        """The folder, to be filled or gone on with. Errors: ValueError where pictures of another plan are in it.

        `model`: name and checksum, and whatever else changes its pictures.
        """
        rows = {row: list(texts) for row, (_, texts) in prompts.rows.items()}
        plan = {"model": model, "seed": options.seed, "batch": options.batch, "rows": rows}
        path = folder / PLAN
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if before != plan:
                raise ValueError(
                    f"{folder} holds pictures of another model, seed or prompts; remove it, or name another"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds other files; name a new or empty folder for the pictures")
        else:
            with whole_file(path) as partial:
                partial.write_text(json.dumps(plan, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return cls(folder)

    def _paths(self, row: str, first: int, count: int) -> Iterator[Path]:
        return (self.folder / row / f"{number:05}.png" for number in range(first, first + count))

    def read(self, row: str, first: int, count: int) -> list[Image.Image] | None:
        """None where one of them is not there, or not readable."""
        try:
            return [open_image(path.read_bytes()) for path in self._paths(row, first, count)]
        except (OSError, SampleError):
            return None

    def write(self, row: str, first: int, pictures: Sequence[Image.Image]) -> None:
        for path, picture in zip(self._paths(row, first, len(pictures)), pictures, strict=True):
            with whole_file(path) as partial:
                picture.save(partial, "PNG")
