"""Conditions on indexed pictures, `lang = 'de' and width > 500`: a small part of SQL's, evaluated by Arrow.

sqlglot parses, what it found is compared with a list of what is allowed, and nothing of it is run as SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from typing import TYPE_CHECKING, NoReturn, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cclm.retrieval.metadata import Metadata

if TYPE_CHECKING:
    from sqlglot import exp

TEXT, NUMBER, DATE = "a text in single quotes", "a number", "a date such as '2024-05-01'"
COLUMNS = {  # what a condition may name, and what it is compared with
    "key": TEXT,
    "path": TEXT,
    "lang": TEXT,  # of any of its captions
    "caption": TEXT,  # any of them
    "width": NUMBER,
    "height": NUMBER,
    "date": DATE,
    "size": NUMBER,  # bytes
    "id": NUMBER,
    "root": NUMBER,
    "sha256": TEXT,
}
ALLOWED = "compare columns with values by = != < <= > >= like ilike in between, is null; join by and, or, not, ( )"
MAX_LENGTH, MAX_DEPTH, MAX_PARTS = 20_000, 24, 64
_MANY = ("lang", "caption")  # values per picture: one of them that fits is enough
_WORDS = "AND OR NOT LIKE ILIKE IN BETWEEN IS NULL".split()
_SIGNS = "L_PAREN R_PAREN COMMA EQ NEQ GT GTE LT LTE DASH STRING NUMBER VAR IDENTIFIER".split()
_DATES = {4: "%Y", 7: "%Y-%m", 10: "%Y-%m-%d", 16: "%Y-%m-%d %H:%M", 19: "%Y-%m-%d %H:%M:%S"}

Values = pa.Array | pa.ChunkedArray
Test = Callable[[Values], Values]  # values of a column -> whether each fits, null where it is not known
Rows = Callable[[pa.Table], Values]


@dataclass(frozen=True)
class Condition:
    """A condition that can be asked of each picture."""

    columns: tuple[str, ...]  # of metadata.parquet that it reads
    test: Rows

    @classmethod
    def parse(cls, text: str) -> Self:
        """Errors: ValueError, one line: what is not understood, and what is allowed."""
        import sqlglot
        from sqlglot import errors, exp

        if len(text) > MAX_LENGTH:
            raise ValueError(f"the condition has {len(text)} characters; {MAX_LENGTH} are allowed")
        if not text.strip():
            _refuse("there is none")
        reader = _Reader()
        try:
            _check_tokens(sqlglot.tokenize(text))
            test = reader.condition(sqlglot.parse_one(text, into=exp.Condition))
        except (errors.SqlglotError, RecursionError):
            _refuse(f"{text[:60]!r} is not understood")
        return cls(tuple(dict.fromkeys(reader.columns)), test)

    def rows(self, metadata: Metadata) -> np.ndarray:
        """Which rows (N,) bool fulfil it; unknown values fulfil nothing."""
        found = [pc.fill_null(self.test(table), False) for table in metadata.tables(self.columns)]
        return np.concatenate([np.zeros(0, bool), *(np.asarray(rows, bool) for rows in found)])


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"condition: {what}; {ALLOWED}; columns are {', '.join(COLUMNS)}")


def _check_tokens(tokens: Sequence) -> None:
    """Before the parser, which calls itself for each bracket, sees them."""
    parts = sum(token.token_type.name in ("AND", "OR", "BETWEEN") for token in tokens)
    if parts > MAX_PARTS:  # each is a pass over all rows
        _refuse(f"more than {MAX_PARTS} parts joined by and, or")
    depth = signs = 0
    for token in tokens:
        kind = token.token_type.name
        if kind not in (*_WORDS, *_SIGNS) and token.text.lower() not in COLUMNS:
            _refuse(f"{token.text[:20]!r} is not allowed")
        depth += (kind == "L_PAREN") - (kind == "R_PAREN")
        signs = signs + 1 if kind in ("NOT", "DASH") else 0
        if depth + signs > MAX_DEPTH:
            _refuse(f"more than {MAX_DEPTH} brackets or nots in one another")


class _Reader:
    """Walks the tree that sqlglot made; notes the columns it meets."""

    def __init__(self) -> None:
        self.columns: list[str] = []

    def condition(self, node: exp.Expression) -> Rows:
        from sqlglot import exp

        self._check(node)
        match node:
            case exp.Paren():
                return self.condition(node.this)
            case exp.Not():
                return _negated(self.condition(node.this))
            case exp.And() | exp.Or():
                join = pc.and_kleene if isinstance(node, exp.And) else pc.or_kleene
                parts = [self.condition(part) for part in node.flatten()]
                return lambda table: reduce(join, (part(table) for part in parts))
            case exp.Is(this=exp.Column()):
                if not isinstance(node.expression, exp.Null):
                    _refuse("`is` goes with null alone")
                return self._is_null(self._column(node.this))
            case exp.Like(this=exp.Column()) | exp.ILike(this=exp.Column()):
                test = self._like(node)
                return _negated(test) if node.args.get("negate") else test
            case exp.In(this=exp.Column()):
                return self._in(node)
            case exp.Between(this=exp.Column()):
                name = self._column(node.this)
                low = _comparison(">=", _value(name, node.args["low"]))
                high = _comparison("<=", _value(name, node.args["high"]))
                return _of(name, lambda values: pc.and_(low(values), high(values)))
            case exp.EQ() | exp.NEQ() | exp.GT() | exp.GTE() | exp.LT() | exp.LTE():
                return self._compared(node)
        _refuse(f"{node.sql()[:40]!r} is no condition")

    def _check(self, node: exp.Expression) -> None:
        known = {"this", "expression", "expressions", "low", "high", "negate"}
        strange = [name for name, value in node.args.items() if value and name not in known]
        if strange:
            _refuse(f"{strange[0].replace('_', ' ')} in {node.sql()[:40]!r} is not allowed")

    def _column(self, node: exp.Expression) -> str:
        name = node.name.lower()
        if node.sql().strip('"').lower() != name:
            _refuse(f"{node.sql()[:40]!r} is no column")
        if name not in COLUMNS:
            _refuse(f"no column {name[:40]!r}" + " (texts take single quotes)" * bool(node.this.args.get("quoted")))
        self.columns.append("captions" if name in _MANY else name)
        return name

    def _compared(self, node: exp.Expression) -> Rows:
        from sqlglot import exp

        sign = {"eq": "=", "neq": "!=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[node.key]
        left, right = node.this, node.expression
        if not isinstance(left, exp.Column):  # 500 < width
            left, right = right, left
            sign = sign.translate(str.maketrans("<>", "><"))
        if not isinstance(left, exp.Column):
            _refuse(f"{node.sql()[:40]!r} compares no column")
        name = self._column(left)
        if isinstance(right, exp.Column):
            other = self._column(right)
            if COLUMNS[name] != COLUMNS[other] or {name, other} & set(_MANY):
                _refuse(f"{name} and {other} cannot be compared")
            return lambda table: _KERNELS[sign](table[name], table[other])
        if sign == "!=":  # of several captions, none may fit
            return _negated(_of(name, _comparison("=", _value(name, right))))
        return _of(name, _comparison(sign, _value(name, right)))

    def _is_null(self, name: str) -> Rows:
        if name in _MANY:
            return _negated(_of(name, pc.is_valid))
        return lambda table: pc.is_null(table[name])

    def _like(self, node: exp.Expression) -> Rows:
        name = self._column(node.this)
        if COLUMNS[name] != TEXT:
            _refuse(f"{name} is no text, {node.key} is for texts")
        pattern, ignore_case = _value(name, node.expression), node.key == "ilike"
        return _of(name, lambda values: pc.match_like(values, pattern, ignore_case=ignore_case))

    def _in(self, node: exp.Expression) -> Rows:
        name = self._column(node.this)
        wanted = [_value(name, value) for value in node.expressions]
        if not wanted:
            _refuse(f"{node.sql()[:40]!r} lists no values")
        if COLUMNS[name] == DATE:
            tests = [_comparison("=", value) for value in wanted]
            return _of(name, lambda values: reduce(pc.or_, (test(values) for test in tests)))
        if COLUMNS[name] == NUMBER:
            wanted = pa.array([float(value) for value in wanted], pa.float64())
            return _of(name, lambda values: _known(values, pc.is_in(values.cast(pa.float64()), value_set=wanted)))
        wanted = pa.array(wanted, pa.string())
        return _of(name, lambda values: _known(values, pc.is_in(values, value_set=wanted)))


_KERNELS = {
    "=": pc.equal,
    "!=": pc.not_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
}


@dataclass(frozen=True)
class _Span:
    """A date as it is written covers a year, a month, a day, a minute or a second."""

    first: datetime
    after: datetime


def _value(name: str, node: exp.Expression) -> str | int | float | _Span:
    """A literal that this column can be compared with."""
    from sqlglot import exp

    negative = isinstance(node, exp.Neg)
    literal = node.this if negative else node
    kind = COLUMNS[name]
    if not isinstance(literal, exp.Literal) or literal.is_string != (kind != NUMBER) or (negative and kind != NUMBER):
        _refuse(f"{name} is compared with {node.sql()[:40]!r}, it takes {kind}")
    if kind == TEXT:
        return literal.this
    try:
        return _span(literal.this) if kind == DATE else _number(literal.this) * (-1 if negative else 1)
    except (ValueError, OverflowError):
        _refuse(f"{name} is compared with {node.sql()[:40]!r}, it takes {kind}")


def _number(text: str) -> int | float:
    value = float(text)
    return int(text) if text.isdecimal() and abs(value) < 2**53 else value


def _span(text: str) -> _Span:
    text = text.strip().replace("T", " ")
    first = datetime.strptime(text, _DATES.get(len(text), "no such length"))
    if len(text) == 4:
        return _Span(first, first.replace(year=first.year + 1))
    if len(text) == 7:
        return _Span(first, (first + timedelta(days=31)).replace(day=1))
    return _Span(first, first + {10: timedelta(days=1), 16: timedelta(minutes=1), 19: timedelta(seconds=1)}[len(text)])


def _comparison(sign: str, value: str | int | float | _Span) -> Test:
    if not isinstance(value, _Span):
        return lambda values: _KERNELS[sign](values, pa.scalar(value))
    first, after = pa.scalar(value.first, pa.timestamp("s")), pa.scalar(value.after, pa.timestamp("s"))
    if sign == "=":
        return lambda dates: pc.and_(pc.greater_equal(dates, first), pc.less(dates, after))
    kernel, bound = {
        "<": (pc.less, first),
        "<=": (pc.less, after),
        ">": (pc.greater_equal, after),
        ">=": (pc.greater_equal, first),
    }[sign]
    return lambda dates: kernel(dates, bound)


def _of(name: str, test: Test) -> Rows:
    """Ask it of a column: of any of its values where a picture has several."""
    if name not in _MANY:
        return lambda table: test(table[name])

    def any_fits(table: pa.Table) -> pa.Array:
        parents, values = _flat(_captions(table), name)
        fits = np.zeros(len(table), bool)
        fits[np.asarray(parents)[np.asarray(pc.fill_null(test(values), False), bool)]] = True
        return pa.array(fits)

    return any_fits


def _captions(table: pa.Table) -> pa.ListArray:
    """Of each picture, a list of languages with their texts."""
    stored = table["captions"].combine_chunks()
    texts = pa.struct([("lang", pa.string()), ("caption", pa.list_(pa.string()))])
    return (stored.chunk(0) if isinstance(stored, pa.ChunkedArray) else stored).cast(pa.list_(texts))


def _flat(captions: pa.ListArray, name: str) -> tuple[pa.Array, pa.Array]:
    """All languages, or texts, of all pictures, and whose each is."""
    parents, flat = pc.list_parent_indices(captions), pc.list_flatten(captions)
    if name == "lang":
        return parents, pc.struct_field(flat, "lang")
    texts = pc.struct_field(flat, "caption")
    return parents.take(pc.list_parent_indices(texts)), pc.list_flatten(texts)


def _known(values: Values, found: Values) -> Values:
    """Of a missing value nothing is known: neither `in` nor `not in` holds."""
    return pc.if_else(pc.is_valid(values), found, pa.scalar(None, pa.bool_()))


def _negated(test: Rows) -> Rows:
    return lambda table: pc.invert(test(table))
