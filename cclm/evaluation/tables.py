"""Tables of a survey: systems by languages, few-shot's curve in numbers; as Markdown and as LaTeX (booktabs).

Every row carries marks; the notes below a table say what they stand for: items and id lists, policies, sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cclm.evaluation.aggregate import FEW_SHOT, MAX_SHOT
from cclm.evaluation.markdown import Notes, below, pipes, plain, raised
from cclm.evaluation.number import Number
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.survey import Line, Survey, View

NOTHING = "–"
HASH = 12  # digits of the id list's hash
WIDTH, PAPER_WIDTH = 12, 9  # columns side by side on screen and in a paper; more go below
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\dag{}",
    "–": "--",
    "→": r"$\rightarrow$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class Row:
    """`own`: ours, which tables set in bold."""

    system: str
    protocol: str
    regime: str
    cells: tuple[str, ...]
    marks: tuple[str, ...] = ()
    own: bool = False

    def cut(self, first: int, last: int) -> Row:
        return Row(
            self.system, self.protocol, self.regime, self.cells[first:last] + self.cells[-1:], self.marks, self.own
        )


@dataclass(frozen=True)
class Table:
    """`columns`: above the cells; the last is an aggregate's. `notes`: mark -> sentence."""

    slug: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: dict[str, str] = field(default_factory=dict)

    def blocks(self, width: int = WIDTH) -> list[tuple[tuple[str, ...], list[Row]]]:
        """The table in pieces of at most `width` columns, each with the last one besides."""
        count = len(self.columns) - 1
        pieces = max(1, -(-count // width))
        size = -(-count // pieces)
        return [
            (self.columns[start : min(start + size, count)] + self.columns[-1:], [
                row.cut(start, min(start + size, count)) for row in self.rows
            ])
            for start in range(0, max(count, 1), max(size, 1))
        ]  # fmt: skip


def tables(survey: Survey) -> list[Table]:
    """One per task, direction and metric; one more where there are few-shot numbers of our own."""
    found = []
    for view in survey.views():
        if lines := survey.lines(view):
            found.append(_languages_table(survey, view, lines))
        if few_shot := _few_shot_table(survey, view):
            found.append(few_shot)
    return found


def _languages_table(survey: Survey, view: View, lines: Sequence[Line]) -> Table:
    languages = [name for name in survey.languages(view) if any(name in line.numbers for line in lines)]
    notes, rows = Notes(), []
    for line in lines:
        cells = [_value(line.numbers.get(language)) for language in languages]
        marks = sentences(line, notes, view)
        rows.append(
            Row(line.head.system, _protocol(line), _regime(line), (*cells, _average(line)), tuple(marks), line.own)
        )
    return Table(view.slug, f"{view.title}, %", (*languages, "avg"), tuple(rows), notes.by_mark())


def _few_shot_table(survey: Survey, view: View) -> Table | None:
    lines = survey.shots(view)
    if not any(line.own for line in lines):
        return None
    assert view.task is not None and view.task.shots is not None
    examples = {"": 0} | dict(view.task.shots.examples)
    systems: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        systems.setdefault((line.head.system, line.head.protocol), []).append(line)
    notes, rows = Notes(), []
    for own in systems.values():
        by_shots = {line.head.shots: line for line in own}
        if set(by_shots) == {""}:
            continue
        cells = [_average(by_shots[shots]) if shots in by_shots else NOTHING for shots in examples]
        marks = dict.fromkeys(mark for line in own for mark in sentences(line, notes, view))
        try:
            whole = survey.score(view, own)
            score, said = f"{whole.value:.2f}", f"AUC: {whole.words}, divided by the largest number"
        except ValueError as error:
            score, said = NOTHING, str(error)
        marks[notes.mark(said)] = None
        head = own[0]
        rows.append(Row(head.head.system, _protocol(head), FEW_SHOT, (*cells, score), tuple(marks), head.own))
    columns = [
        f"{shots} ({count})" if shots not in ("", str(count)) else str(count) for shots, count in examples.items()
    ]
    rows.sort(key=lambda row: (not row.own, -float(row.cells[-1]) if row.cells[-1] != NOTHING else 0.0))
    title = f"{view.title}, %, few-shot by training set (labelled examples)"
    return Table(f"{view.slug}_few_shot", title, (*columns, "AUC"), tuple(rows), notes.by_mark())


def _value(number: Number | None) -> str:
    return NOTHING if number is None else f"{number.value:.2f}"


def _average(line: Line) -> str:
    if line.average is None:
        return NOTHING
    there, missing = line.average.languages, line.average.missing
    part = f" ({len(there)}/{len(there) + len(missing)})" if missing else ""
    return f"{line.average.value:.2f}{part}"


def _protocol(line: Line) -> str:
    head = line.head
    return head.protocol or "not stated"


def _regime(line: Line) -> str:
    return f"{MAX_SHOT} ({line.head.shots})" if line.head.regime == MAX_SHOT else line.head.regime


def sentences(line: Line, notes: Notes, view: View) -> list[str]:
    """Marks of all that must be said of a row."""
    numbers = list(line.numbers.values())
    said = [StandIns.note] if line.stands_in else []
    if line.own:
        protocols = view.task.protocols if view.task else ()
        said += [f"protocol {own.name}: {own.about}" for own in protocols if own.name == line.head.protocol]
        said.append(_tested(numbers))
        said += _merged(numbers)
    said += [line.average.words] if line.average else []
    said += [f"published: {source}" for source in dict.fromkeys(n.source for n in numbers or [line.head]) if source]
    if not all(number.verified for number in numbers or [line.head]):
        said.append("not verified")
    return [notes.mark(sentence) for sentence in dict.fromkeys(said)]


def _tested(numbers: Sequence[Number]) -> str:
    """Items and id list by language, languages of the same test together."""
    split = numbers[0].split
    split = "" if split == "test" else f"{split}, "
    return f"{split}items (id list): " + _grouped((f"{n.items:,} ({n.ids[:HASH]})", n.language) for n in numbers)


def _merged(numbers: Sequence[Number]) -> list[str]:
    """Notes, those that begin alike in one: "captions per image: 5 (de en); 1 (cs fr)"."""
    found: dict[str, list[tuple[str, str]]] = {}
    for number in numbers:
        for note in number.notes:
            if note != StandIns.note:
                start, colon, rest = note.partition(": ")
                found.setdefault(start + colon, []).append((rest, number.language))
    return [start + _grouped(parts, len(numbers)) for start, parts in found.items()]


def _grouped(parts: Iterable[tuple[str, str]], count: int | None = None) -> str:
    languages: dict[str, list[str]] = {}
    parts = list(parts)
    for text, language in parts:
        languages.setdefault(text, []).append(language)
    if len(languages) == 1 and len(parts) == (count or len(parts)):
        return next(iter(languages))
    return "; ".join(f"{text} in {' '.join(names)}" for text, names in languages.items())


def markdown(tables: Iterable[Table]) -> str:
    """To paste in a README: our own systems in bold."""
    parts = []
    for table in tables:
        parts.append(f"### {plain(table.title)}")
        for columns, rows in table.blocks():
            head = ("system", "protocol", "regime", *columns)
            lines = [pipes(head), pipes(("---",) * 3 + ("--:",) * len(columns))]
            for row in rows:
                system = f"**{plain(row.system)}**" if row.own else plain(row.system)
                cells = map(plain, (row.protocol, row.regime, *row.cells))
                lines.append(pipes((system + raised(row.marks), *cells)))
            parts.append("\n".join(lines))
        parts.append(below(table.notes))
    return "\n\n".join(parts) + "\n"


def latex(tables: Iterable[Table]) -> str:
    """Floats across both columns of a paper that loads booktabs; notes stand below a table's last piece."""
    parts = []
    for table in tables:
        blocks = table.blocks(PAPER_WIDTH)
        for number, (columns, rows) in enumerate(blocks, 1):
            piece = f" ({number} of {len(blocks)})" if len(blocks) > 1 else ""
            label = f"tab:{table.slug.replace('_', '-')}{f'-{number}' if piece else ''}"
            lines = [r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}"]
            lines += [rf"\caption{{{escaped(table.title + piece)}}}\label{{{label}}}", *_tabular(columns, rows)]
            if number == len(blocks):
                lines.append(r"\par\smallskip\begin{minipage}{\textwidth}\scriptsize\raggedright")
                lines += [
                    rf"\textsuperscript{{{escaped(mark)}}}~{escaped(text)}\\" for mark, text in table.notes.items()
                ]
                lines.append(r"\end{minipage}")
            parts.append("\n".join([*lines, r"\end{table*}", ""]))
    return "\n".join(parts)


def _tabular(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Regimes as headings, to save a column."""
    lines = [rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}", r"\toprule"]
    lines.append(_ampersands(("system", "protocol", *columns)))
    regime = ""
    for row in rows:
        if row.regime != regime:
            lines += [r"\midrule", rf"\multicolumn{{{2 + len(columns)}}}{{l}}{{\textit{{{escaped(row.regime)}}}}} \\"]
            regime = row.regime
        marks = rf"\textsuperscript{{{escaped(' '.join(row.marks))}}}" if row.marks else ""
        system = rf"\textbf{{{escaped(row.system)}}}" if row.own else escaped(row.system)
        lines.append(_ampersands((row.protocol, *row.cells), system + marks))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _ampersands(cells: Sequence[str], first: str | None = None) -> str:
    escapes = [escaped(cell) for cell in cells]
    return " & ".join(escapes if first is None else [first, *escapes]) + r" \\"


def escaped(text: str) -> str:
    """The text as LaTeX sets it."""
    return "".join(_LATEX.get(character, character) for character in text)
