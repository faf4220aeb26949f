"""Tables in Markdown: rows between pipes, texts as they are, and notes that rows refer to by marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cclm.evaluation.pictures import StandIns

STANDS_IN = "†"


class Notes:
    """Gives each sentence one mark: † for pictures that stand in, then a, b, .., z, aa."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}

    def mark(self, sentence: str) -> str:
        if sentence not in self.marks:
            number = len(self.marks) - (StandIns.note in self.marks)
            letters = (chr(96 + number // 26) if number >= 26 else "") + chr(97 + number % 26)
            self.marks[sentence] = STANDS_IN if sentence == StandIns.note else letters
        return self.marks[sentence]

    def by_mark(self) -> dict[str, str]:
        """Stand-ins first, as that one counts most."""
        found = {mark: sentence for sentence, mark in self.marks.items()}
        return {mark: found[mark] for mark in sorted(found, key=lambda mark: (mark != STANDS_IN, len(mark), mark))}


def pipes(cells: Sequence[str]) -> str:
    """A row; its cells are Markdown already."""
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """The text in one line, as Markdown shows it."""
    for character in "\\|*_<>`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def raised(marks: Iterable[str]) -> str:
    """Marks behind a name; "" for none."""
    told = " ".join(marks)
    return f" <sup>{told}</sup>" if told else ""


def below(notes: dict[str, str]) -> str:
    """What stands under a table: a line per mark."""
    return "\n".join(f"<sup>{mark}</sup> {plain(text)}  " for mark, text in notes.items())
