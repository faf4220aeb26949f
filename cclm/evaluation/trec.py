"""TREC's run and qrels files, which trec_eval, pytrec_eval and ranx read: written from items, and runs read.

Blanks of any kind in an id, which separate columns there, are written as %20 and so on, % itself as %25.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from cclm.data.raw import read_lines
from cclm.evaluation.items import Captions, Sentences
from cclm.evaluation.ways import Ranking, ways
from cclm.storage import whole_file

BLANKS = re.compile(r"[ \t\r\v\f]+")  # as trec_eval reads them: others are part of an id
COLUMNS = "query Q0 item rank score tag"


def write_run(items: Iterable[Mapping[str, Any]], path: Path, direction: str, tag: str = "cclm") -> None:
    """The ranked lists of one direction; where no scores are known, they fall by 1 from place to place.

    Errors: ValueError where no item has a list.
    """
    lines = []
    for item in items:
        if item.get("direction") == direction and "ranked" in item:
            names = item["ranked"]
            scores = item.get("scores") or range(len(names), 0, -1)
            for place, (name, score) in enumerate(zip(names, scores, strict=True), 1):
                lines.append(f"{_written(item['id'])} Q0 {_written(name)} {place} {score!r} {_written(tag)}\n")
    if not lines:
        raise ValueError(f"no ranked list of direction {direction}; there is nothing to write to {path}")
    with whole_file(path) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def write_qrels(test: Captions | Sentences, path: Path, direction: str) -> None:
    """What answers what in one direction of a test: `query 0 item 1`. Errors: ValueError for no such direction."""
    way = {way.name: way for way in ways(test)}.get(direction)
    if way is None:
        raise ValueError(
            f"no direction {direction!r} in task {test.task}; allowed: {', '.join(w.name for w in ways(test))}"
        )
    pairs = zip(way.relevance.queries().tolist(), way.relevance.items.tolist(), strict=True)
    with whole_file(path) as partial:
        partial.write_text(
            "".join(f"{_written(way.queries[query])} 0 {_written(way.gallery[item])} 1\n" for query, item in pairs),
            encoding="utf-8",
        )


def read_run(path: Path) -> Iterator[tuple[str, Ranking]]:
    """Query and list, in the order of the scores: as in trec_eval, ranks and the order of lines do not count.

    Errors: ValueError naming the line that has other columns.
    """
    found: dict[str, list[tuple[float, str]]] = {}
    for number, line in enumerate(read_lines(path), 1):
        columns = BLANKS.split(line.strip(" \t\r\v\f"))
        if columns == [""]:
            continue
        try:
            query, _, item, _, score, _ = columns
            value = float(score)
        except ValueError:
            raise ValueError(
                f"{path}, line {number} is neither JSON nor of a TREC run, whose columns are {COLUMNS}"
            ) from None
        if not math.isfinite(value):
            raise ValueError(f"{path}, line {number}: score {score} is no number to rank by")
        found.setdefault(unquote(query), []).append((value, unquote(item)))
    for query, entries in found.items():
        entries.sort(key=lambda entry: -entry[0])
        yield query, Ranking(tuple(name for _, name in entries), tuple(score for score, _ in entries))


def _written(name: str) -> str:
    return "".join(quote(sign) if sign.isspace() or sign == "%" else sign for sign in name)
