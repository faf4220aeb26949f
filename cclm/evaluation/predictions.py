"""Predictions of any system, read as they come: answers by id, ranked lists, our own JSON lines, TREC runs.

Nothing is unpickled. What is read is by id, so that the order of a file never matters; only the lists of gallery rows
that IGLUE ships have no ids, and stand in the order of the captions. What a file does not say itself is noted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cclm.data.raw import read_lines
from cclm.evaluation.items import Captions, Descriptions, Pictures, Questions, Sentences
from cclm.evaluation.labels import LabelError, read_label
from cclm.evaluation.listed import Listed, ListReader
from cclm.evaluation.trec import read_run
from cclm.evaluation.ways import Rankings, ways
from cclm.storage import whole_file

IDS = ("questionId", "question_id", "id", "pairID", "identifier", "qid")
SAID = ("prediction", "pred")
DOUBTFUL = ("answer", "label")  # in other files what is right; where both stand there, the latter is
BESIDE = ("images", "right")  # of our own items, which are no predictions
RANKED = ("ranked", "ranking")
WRITTEN = ("caption", *SAID)

T = TypeVar("T")


@dataclass(frozen=True)
class Given(Generic[T]):
    """What a file holds. `notes`: how it was read where it does not say so itself, for the result made of it."""

    predictions: T
    notes: tuple[str, ...] = ()


def write(items: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One JSON object a line, whole or not at all."""
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def read(path: Path) -> list[dict[str, Any]]:
    """Items as `write` has stored them. Errors: ValueError."""
    found = _parsed(path)
    found = [found] if isinstance(found, dict) else found  # a single line
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{path} holds no items of cclm iglue, one JSON object a line")
    return found


def read_answers(path: Path, test: Questions | Pictures) -> Given[dict[str, str]]:
    """Labels by id: of a JSON list of objects, one object a line, or one object from id to label.

    Errors: ValueError for a file that is none of these, or empty; a field that may be what is right instead of what was
    said; an id that repeats, or a value that is no label of the task.
    """
    found, notes = _parsed(path), ()
    if isinstance(found, dict):
        rows: list[tuple[str, Any]] = list(found.items())
    elif isinstance(found, list) and all(isinstance(row, dict) for row in found):
        field = _answer_field(path, found)
        notes = () if field == SAID[0] else (f"answers read from field {field!r}",)
        rows = list(zip(_ids(path, found), _column(path, found, field), strict=True))
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
    return Given(answers, notes)


def read_captions(path: Path, test: Descriptions) -> Given[dict[str, str]]:
    """Captions by id: of a JSON list of objects (COCO's {image_id, caption} too), one a line, or an object id -> text.

    Errors: ValueError for a file that is none of these, or empty; an id that repeats, or a caption that is no text.
    """
    found = _parsed(path)
    if isinstance(found, dict):
        rows: list[tuple[str, Any]] = list(found.items())
    elif isinstance(found, list) and all(isinstance(row, dict) for row in found):
        written = _column(path, found, _one_of(path, found, WRITTEN))
        rows = list(zip(_ids(path, found, (*IDS, "image_id")), written, strict=True))
    else:
        raise ValueError(f"{path} holds no captions; give a JSON list of {{id, caption}}, or an object id -> caption")
    _refuse_repeats(path, [name for name, _ in rows])
    if strange := [(name, value) for name, value in rows if not isinstance(value, str)]:
        name, value = strange[0]
        raise ValueError(f"{path}: the caption of {name!r} is {str(value)[:40]!r}, which is no text; give one for each")
    return Given(dict(rows))


def _answer_field(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """The field that holds what was said, which is never guessed among several that may."""
    field = _one_of(path, rows, (*SAID, *DOUBTFUL))
    known = {*IDS, *DOUBTFUL, *BESIDE}
    if field in DOUBTFUL and (others := sorted({name for row in rows for name in row} - known)):
        raise ValueError(
            f"{path}: {field!r} may be what is right, and {' or '.join(map(repr, others))} what was predicted; name "
            f"the field of the predictions {SAID[0]!r}, or leave the others out"
        )
    return field


def read_rankings(path: Path, test: Captions | Sentences, direction: str | None = None) -> Given[Rankings]:
    """Ranked lists by direction and id of the query.

    Of a JSON list of lists of gallery rows or ids, one for each query in its order; one object a line with "id" and
    "ranked", "scores" and "direction" where they are known; one object from id to list; a TREC run. `direction`: of
    lists that do not tell theirs; without it, lists in order are of the first, and others must be told by their ids.
    Errors: ValueError for a file that is none of these, or empty; another number of lists, a query that repeats, a
    direction that nothing tells.
    """
    both = ways(test)
    by_name = {way.name: way for way in both}
    if direction is not None and direction not in by_name:
        raise ValueError(f"no direction {direction!r} in task {test.task}; allowed: {', '.join(by_name)}")
    reader, found = ListReader(path, both, direction), _parsed(path, plain=True)
    if isinstance(found, list) and all(isinstance(row, list) for row in found):
        way = both[0] if direction is None else by_name[direction]
        if len(found) != len(way.queries):
            raise ValueError(
                f"{path} holds {len(found):,} lists where {way.name} has {len(way.queries):,} queries; give one for "
                "each, in their order, or lists by id"
            )
        rows = zip(way.queries, found, strict=True)
        lists = {query: reader.named(_listed(path, query, row), way) for query, row in rows}
        return Given({way.name: lists}, (f"{way.name}: lists without ids, matched by position",))
    if isinstance(found, str):
        given = [Listed(query, ranking.items, ranking.scores) for query, ranking in read_run(path)]
    elif isinstance(found, dict):
        given = [_listed(path, query, row) for query, row in found.items()]
    elif isinstance(found, list) and all(isinstance(row, dict) for row in found):
        columns = zip(_ids(path, found), _column(path, found, _one_of(path, found, RANKED)), found, strict=True)
        given = [_listed(path, query, items, row) for query, items, row in columns]
    else:
        raise ValueError(
            f"{path} holds no ranked lists; give lists of gallery rows as JSON, objects {{id, ranked}}, or TREC's run"
        )
    return Given(*reader.by_direction(given))


def _listed(path: Path, query: str, items: Any, row: Mapping[str, Any] | None = None) -> Listed:
    """A list of ids or rows of a gallery; with the scores, by which it is ordered, and the direction of its row."""
    scores, direction = (row or {}).get("scores"), (row or {}).get("direction")
    if not isinstance(items, list):
        raise ValueError(f"{path}: the list of query {query!r} is {str(items)[:40]!r}; give gallery rows or ids")
    if strange := [item for item in items if not isinstance(item, int | str) or isinstance(item, bool)]:
        raise ValueError(
            f"{path}: {str(strange[0])[:40]!r} in the list of query {query!r} is neither gallery row nor id"
        )
    if scores is None:
        return Listed(query, tuple(items), None, direction)
    if not isinstance(scores, list) or len(scores) != len(items):
        raise ValueError(f"{path}: ranked and scores of query {query!r} are no lists of one length")
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise ValueError(f"{path}: scores of query {query!r} are no numbers")
    order = sorted(range(len(items)), key=lambda place: -scores[place])
    ordered = tuple(items[place] for place in order), tuple(float(scores[place]) for place in order)
    return Listed(query, *ordered, direction)


def _parsed(path: Path, plain: bool = False) -> Any:
    """JSON, or JSON lines as a list. `plain`: text that is neither is given back. Errors: OSError; ValueError."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file of predictions in it")
    if not path.exists():
        raise ValueError(f"there is no file of predictions {path}; check the path")
    found = _json(path, "\n".join(read_lines(path)), plain)
    if found in ("", [], {}):
        raise ValueError(f"{path} is empty; write the predictions again")
    return found


def _json(path: Path, text: str, plain: bool) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be predictions; write it again") from None
    except ValueError as whole:
        if isinstance(whole, RepeatedError):
            raise ValueError(f"{path}: {whole}") from None
        if plain and text.strip() and not text.lstrip().startswith(("[", "{")):
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
        raise RepeatedError(
            f"ids that stand there more than once: {len(repeated):,}, first {repeated[0]!r}; give each once"
        )


def _refuse_repeats(path: Path, names: Sequence[str]) -> None:
    try:
        _tell_repeats(names)
    except RepeatedError as error:
        raise ValueError(f"{path}: {error}") from None


def _one_of(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The first of these fields that a row has. Errors: ValueError with all of them."""
    found = next((name for name in names if any(name in row for row in rows)), None)
    if found is None:
        raise ValueError(f"{path}, item 1 has no {' or '.join(names)}; it has {', '.join(rows[0]) or 'nothing'}")
    return found


def _column(path: Path, rows: Sequence[dict[str, Any]], field: str) -> list[Any]:
    """A field of all rows. Errors: ValueError naming the row that lacks it."""
    for number, row in enumerate(rows, 1):
        if field not in row:
            raise ValueError(f"{path}, item {number} has no {field}, as others have; give it to each")
    return [row[field] for row in rows]


def _ids(path: Path, rows: Sequence[dict[str, Any]], fields: Sequence[str] = IDS) -> list[str]:
    names = _column(path, rows, _one_of(path, rows, fields))
    for number, value in enumerate(names, 1):
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"{path}, item {number}: id {str(value)[:40]!r} is neither text nor a whole number")
    return [str(value) for value in names]
