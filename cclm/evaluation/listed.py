"""Ranked lists as files hold them, by rows or ids of a gallery: of which direction they are, and what they name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cclm.evaluation.ways import Ranking, Rankings, Way


@dataclass(frozen=True)
class Listed:
    """Rows or ids of a gallery, best first. `scores`, `direction`: where they are known."""

    query: str
    items: tuple[int | str, ...]
    scores: tuple[float, ...] | None = None
    direction: str | None = None


class ListReader:
    """Lists of one file about one test. `direction`: of those that neither the file nor their ids tell it of."""

    def __init__(self, path: Path, both: tuple[Way, Way], direction: str | None = None) -> None:
        self.path, self.direction = path, direction
        self.ways = {way.name: way for way in both}
        self.first = both[0].name
        self.asking = {way.name: frozenset(way.queries) for way in both}
        self.held = {way.name: frozenset(way.gallery) for way in both}
        self.numbered = any(name.isdecimal() for names in self.held.values() for name in names)

    def by_direction(self, given: Iterable[Listed]) -> tuple[Rankings, tuple[str, ...]]:
        """By direction and id of the query, and notes on directions that the file does not say.

        A list whose id asks in neither direction stands among those of a direction that is there, where scoring tells
        of it. Errors: ValueError for a direction that there is not, or that nothing tells; a row outside the gallery; a
        query that repeats.
        """
        found: Rankings = {}
        notes: dict[str, None] = {}
        unknown: list[Listed] = []
        repeated: list[str] = []
        for one in given:
            name, source = (one.direction, "") if one.direction else self._told(one)
            if name is None:
                unknown.append(one)
                continue
            if not isinstance(name, str) or name not in self.ways:
                raise ValueError(
                    f"{self.path}: direction {name!r} of query {one.query!r}; allowed: {', '.join(self.ways)}"
                )
            if source:
                notes[f"{name}: the lists do not say their direction, which is by {source}"] = None
            lists = found.setdefault(name, {})
            if one.query in lists:
                repeated.append(one.query)
            lists[one.query] = self.named(one, self.ways[name])
        if unknown:
            name = next(iter(found), self.first)
            found[name] = found.get(name, {}) | {one.query: self.named(one, self.ways[name]) for one in unknown}
        if repeated:
            raise ValueError(
                f"{self.path}: queries with more than one list: {len(repeated):,}, first {repeated[0]!r}; give one each"
            )
        return found, tuple(notes)

    def _told(self, one: Listed) -> tuple[str | None, str]:
        """A list's direction, None where its query is of neither, and what tells it. Errors: ValueError for nothing.

        The id of an image asks from image to text, but in files of other systems also names the one caption of the
        image: only the ids of what is ranked tell which, and rows of a gallery do not.
        """
        fitting = [name for name in self.ways if one.query in self.asking[name]]
        ranked = next((item for item in one.items if self._row(item) is None), None)
        if len(fitting) > 1:
            fitting = [name for name in fitting if ranked in self.held[name]] or fitting
        if not fitting:
            return self.direction, "--direction"
        if len(fitting) == 1 and (fitting[0] == self.first or ranked is not None):
            return fitting[0], "their ids"
        if self.direction is None:
            raise ValueError(
                f"{self.path}: nothing tells the direction of the list of query {one.query!r}; give each list a "
                f"'direction', or all --direction: {' or '.join(self.ways)}"
            )
        return self.direction, "--direction"

    def _row(self, item: int | str) -> int | None:
        """The row that an item is; a whole number as text only where no id is one."""
        if isinstance(item, int):
            return item
        return int(item) if not self.numbered and item.isdecimal() else None

    def named(self, one: Listed, way: Way) -> Ranking:
        """A list by ids. Errors: ValueError for a row outside the gallery."""
        rows = [self._row(item) for item in one.items]
        if outside := [row for row in rows if row is not None and not 0 <= row < len(way.gallery)]:
            raise ValueError(
                f"{self.path}: gallery row {outside[0]} in the list of query {one.query!r}; rows are 0 to "
                f"{len(way.gallery) - 1:,}"
            )
        names = (str(item) if row is None else way.gallery[row] for item, row in zip(one.items, rows, strict=True))
        return Ranking(tuple(names), one.scores)
