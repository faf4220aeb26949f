"""Predictions of any system, read as they come: answers by id, ranked lists, our own JSON lines, TREC runs.

Nothing is unpickled. What is read is by id, so that the order of a file never matters; only the lists of gallery rows
that IGLUE ships have no ids, and stand in the order of the captions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cclm.data.raw import read_lines
from cclm.evaluation.items import Captions, Pictures, Questions, Sentences
from cclm.evaluation.labels import LabelError, read_label
from cclm.evaluation.trec import read_run
from cclm.evaluation.ways import Ranking, Way, ways
from cclm.storage import whole_file

IDS = ("questionId", "question_id", "id", "pairID", "identifier", "qid")
ANSWERS = ("prediction", "pred", "answer", "label")  # where several stand there, the later may be what is right
RANKED = ("ranked", "ranking")

Rankings: TypeAlias = dict[str, dict[str, Ranking]]  # direction -> id of the query -> list


def write(items: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One JSON object a line, whole or not at all."""
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def read(path: Path) -> list[dict[str, Any]]:
    """Items as `write` has stored them. Errors: ValueError."""
    found = _parsed(path)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{path} holds no items of cclm iglue, one JSON object a line")
    return found


def read_answers(path: Path, test: Questions | Pictures) -> dict[str, str]:
    """Labels by id: of a JSON list of objects, one object a line, or one object from id to label.

    Errors: ValueError for a file that is none of these, an id that repeats, or a value that is no label of the task.
    """
    found = _parsed(path)
    if isinstance(found, dict):
        rows: list[tuple[str, Any]] = list(found.items())
    elif isinstance(found, list) and all(isinstance(row, dict) for row in found):
        rows = [
            (_named(path, number, row, IDS), _field(path, number, row, ANSWERS)) for number, row in _numbered(found)
        ]
    else:
        raise ValueError(f"{path} holds no answers; give a JSON list of {{id, prediction}}, or an object id -> label")
    _refuse_repeats(path, [name for name, _ in rows])
    labels = test.labels if isinstance(test, Questions) else tuple(test.names)
    loose = isinstance(test, Questions) and test.protocol.match == "contains"
    answers: dict[str, str] = {}
    wrong: list[str] = []
    for name, value in rows:
        try:
            answers[name] = read_label(value, labels, loose)
        except LabelError as error:
            wrong.append(f"{name!r}: {error}")
    if wrong:
        raise ValueError(f"{path}: {len(wrong):,} of {len(rows):,} answers are no labels, first of {wrong[0]}")
    return answers


def read_rankings(path: Path, test: Captions | Sentences) -> Rankings:
    """Ranked lists by direction and id of the query.

    Of a JSON list of lists of gallery rows or ids, one for each query of the first direction in its order; one object a
    line with "id" and "ranked", "scores" and "direction" where they are known; one object from id to list; a TREC run.
    Errors: ValueError for a file that is none of these, another number of lists, a query that repeats.
    """
    both = ways(test)
    found = _parsed(path, plain=True)
    if isinstance(found, str):
        return _directed(path, ((None, query, ranking) for query, ranking in read_run(path)), both)
    if isinstance(found, list) and found and all(isinstance(row, list) for row in found):
        way = both[0]
        if len(found) != len(way.queries):
            raise ValueError(
                f"{path} holds {len(found):,} lists where {way.name} has {len(way.queries):,} queries; give one for "
                "each, in their order, or lists by id"
            )
        rows = zip(way.queries, found, strict=True)
        return {way.name: {query: _ranking(path, query, row, way) for query, row in rows}}
    if isinstance(found, dict):
        given = ((None, query, row) for query, row in found.items())
    elif isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
        given = (_listed(path, number, row) for number, row in _numbered(found))
    else:
        raise ValueError(
            f"{path} holds no ranked lists; give lists of gallery rows as JSON, objects {{id, ranked}}, or TREC's run"
        )
    return _directed(path, given, both)


def _numbered(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(rows, 1)


def _listed(path: Path, number: int, row: dict[str, Any]) -> tuple[str | None, str, Any]:
    """Direction, query and list of one object; with scores, a list of both."""
    items = _field(path, number, row, RANKED)
    if "scores" in row:
        scores = row["scores"]
        if not isinstance(items, list) or not isinstance(scores, list) or len(scores) != len(items):
            raise ValueError(f"{path}, item {number}: ranked and scores are no lists of one length")
        items = list(zip(items, scores, strict=True))
    return row.get("direction"), _named(path, number, row, IDS), items


def _directed(path: Path, given: Iterable[tuple[str | None, str, Any]], both: tuple[Way, Way]) -> Rankings:
    """Lists by direction, told by name, else by whose query it is."""
    known = {way.name: way for way in both}
    asking = {way.name: frozenset(way.queries) for way in both}
    found: Rankings = {}
    repeated: list[str] = []
    for direction, query, row in given:
        name = direction or next((name for name, queries in asking.items() if query in queries), both[0].name)
        if name not in known:
            raise ValueError(f"{path}: direction {name!r} of query {query!r}; allowed: {', '.join(known)}")
        lists = found.setdefault(name, {})
        if query in lists:
            repeated.append(query)
        lists[query] = row if isinstance(row, Ranking) else _ranking(path, query, row, known[name])
    if repeated:
        raise ValueError(f"{path}: {len(repeated):,} queries repeat, first {repeated[0]!r}; give one list for each")
    return found


def _ranking(path: Path, query: str, row: Any, way: Way) -> Ranking:
    """A list of ids or rows of the gallery, or of (id or row, score), best first or in the order of the scores."""
    if not isinstance(row, list):
        raise ValueError(f"{path}: the list of query {query!r} is {str(row)[:40]!r}; give gallery rows or ids")
    scored = bool(row) and all(isinstance(entry, tuple) for entry in row)
    if scored:
        if not all(type(score) in (int, float) and math.isfinite(score) for _, score in row):
            raise ValueError(f"{path}: scores of query {query!r} are no numbers")
        row = sorted(row, key=lambda entry: -entry[1])
    names = []
    for item in [entry[0] for entry in row] if scored else row:
        if type(item) is int and not 0 <= item < len(way.gallery):
            raise ValueError(
                f"{path}: gallery row {item} in the list of query {query!r}; rows are 0 to {len(way.gallery) - 1:,}"
            )
        if not isinstance(item, int | str) or isinstance(item, bool):
            raise ValueError(f"{path}: {str(item)[:40]!r} in the list of query {query!r} is neither gallery row nor id")
        names.append(way.gallery[item] if isinstance(item, int) else item)
    return Ranking(tuple(names), tuple(float(score) for _, score in row) if scored else None)


def _parsed(path: Path, plain: bool = False) -> Any:
    """JSON, or JSON lines as a list. `plain`: text that is neither is given back. Errors: OSError; ValueError."""
    text = "\n".join(read_lines(path))
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be predictions; write it again") from None
    except ValueError as whole:
        if isinstance(whole, RepeatedError):
            raise ValueError(f"{path}: {whole}") from None
        if plain and not text.lstrip().startswith(("[", "{")):
            return text
        reason = whole
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line, object_pairs_hook=_object))
            except RepeatedError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            except ValueError as error:
                told = f"line {number}: {error}" if rows else str(reason)
                raise ValueError(f"{path} is cut or no JSON ({told}); write it again") from None
    if not rows:
        raise ValueError(f"{path} is empty; write the predictions again")
    return rows


class RepeatedError(ValueError):
    """A JSON object that names something more than once, of which a reader would keep one silently."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _tell_repeats([name for name, _ in pairs])
    return found


def _tell_repeats(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise RepeatedError(f"{len(repeated):,} ids stand there more than once, first {repeated[0]!r}; give each once")


def _refuse_repeats(path: Path, names: Sequence[str]) -> None:
    try:
        _tell_repeats(names)
    except RepeatedError as error:
        raise ValueError(f"{path}: {error}") from None


def _field(path: Path, number: int, row: dict[str, Any], names: tuple[str, ...]) -> Any:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise ValueError(f"{path}, item {number} has no {names[0]}; it has {', '.join(row) or 'nothing'}")
    return row[found]


def _named(path: Path, number: int, row: dict[str, Any], names: tuple[str, ...]) -> str:
    value = _field(path, number, row, names)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{path}, item {number}: id {str(value)[:40]!r} is neither text nor a whole number")
    return str(value)
