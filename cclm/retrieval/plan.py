"""Which kind of index to build under a budget of memory, recall and latency: a ladder of plans, the next one smaller,
and exact search, if it fits, for vectors of which none of them finds what is near.

The numbers that plans start from were measured on mixtures of clusters; what an index reaches is measured when it is
built (retrieval/tuning.py).
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import first_line
from cclm.retrieval.partitions import ends_in_lists

if TYPE_CHECKING:
    import faiss

EXACT_BELOW = 100_000  # rows: up to here exact search is as fast as needed
BLOCK_ROWS = 4096  # that are held, and added, at a time
PROCESS_BYTES = 210_000_000  # interpreter and libraries, with what they hold on to once they were at work
POINTS_PER_CENTROID = 39  # the least that FAISS trains a centroid from without complaint

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("", 1000), ("B", 1000), ("IB", 1024))
}
_LARGEST = 2**20  # number in a factory string: lists, say
_LARGEST_CODE = 4096  # any other number: parts, neighbours, widths
_MOST_BITS = 12  # of one part of a code
_CODEBOOK_BYTES = 2**30
_WIDEST = 2**16
_PARAMETERS = {"nprobe": _LARGEST, "efSearch": _WIDEST, "quantizer_efSearch": _WIDEST, "k_factor_rf": 1000, "qb": 8}


@dataclass(frozen=True)
class Budget:
    """What an index may cost and should reach. `factory` and `search` take the place of the choice and the tuning."""

    max_memory: int = 0  # bytes, of the process that builds, at its peak, and of the index; 0: what is free
    min_recall: float = 0.95  # of the 10 nearest, on average
    max_latency: float = 0.0  # ms of one query alone, in the median; 0: any
    factory: str = ""  # FAISS index factory string
    search: str = ""  # FAISS search parameters: nprobe=16,k_factor_rf=4

    def __post_init__(self) -> None:
        """Errors: ValueError."""
        if not 0 < self.min_recall <= 1:
            raise ValueError(f"min_recall is {self.min_recall}; it is a share of 10 neighbours: give 0.95, say")
        if self.max_latency < 0 or not math.isfinite(self.max_latency):
            raise ValueError(f"max_latency is {self.max_latency}; give milliseconds, or 0 for any")
        if self.max_memory < 0:
            raise ValueError(f"max_memory is {self.max_memory}; give bytes, or 512MB, 2GB ..")
        if self.search and not self.factory:
            raise ValueError(f"search parameters {self.search!r} are of no chosen index; give --factory with them")
        check_search(self.search)

    @property
    def memory(self) -> int:
        """Bytes that may be used."""
        return self.max_memory or free_memory()


@dataclass(frozen=True)
class Plan:
    """An index that would be built."""

    factory: str
    search: str  # parameters given by hand; "" where they are tuned, or there are none
    bytes_per_vector: float  # of image.index
    expected_recall: float  # of the 10 nearest, once tuned; nan where nothing is known
    build_memory: int  # bytes at the peak
    part_rows: int = 0  # whose codes are held at a time, and merged on disk; 0: all

    def __str__(self) -> str:
        recall = "not known" if math.isnan(self.expected_recall) else f"{self.expected_recall:.2f}"
        parameters = f" with {self.search}" if self.search else ""
        return (
            f"{self.factory}{parameters}: {self.bytes_per_vector:.0f} bytes per vector, recall {recall} expected, "
            f"{size_text(self.build_memory)} to build{', codes on disk' if self.part_rows else ''}"
        )


@dataclass(frozen=True)
class _Rung:
    kind: str  # {lists} and {parts} are filled in
    bits: float  # per dimension, of image.index
    fixed: int  # bytes per vector beside them
    held: float  # bits per dimension that building holds in memory, beside `fixed`
    recall: float


# PQ of 4 bits for each 4 dimensions, read by fast-scan, finds candidates, and the codes that refine them decide recall:
# the fastest. RaBitQ needs none of these, but more time.
_RUNGS = (
    _Rung("HNSW32,SQ8", 8, 280, 8, 0.97),  # only where single queries must be fast: slow to build
    _Rung("IVF{lists},PQ{parts}x4fs,Refine(SQfp16)", 17, 10, 1, 0.99),
    _Rung("IVF{lists},PQ{parts}x4fs,Refine(SQ8)", 9, 10, 1, 0.96),
    _Rung("IVF{lists},PQ{parts}x4fs,Refine(SQ6)", 7, 10, 1, 0.95),
    _Rung("IVF{lists},RaBitQfs4", 4, 29, 4, 0.95),
    _Rung("IVF{lists},RaBitQfs", 1, 17, 1, 0.77),
    _Rung("IVF{lists},PQ{parts}x4fs", 1, 10, 1, 0.69),
)
_ON_DISK = _Rung("IVF{lists},SQ8", 8, 8, 8, 0.96)  # where nothing else that fits finds enough
HNSW_LATENCY = 1.0  # ms


def ladder(rows: int, dim: int, budget: Budget) -> list[Plan]:
    """The plans that fit the budget's memory, the best first, each next one smaller; the last is exact search.

    Errors: ValueError, one line, for a factory string that FAISS does not know, and where nothing fits: names what
    would.
    """
    exact = _exact(dim, rows)
    if budget.factory:
        plans = [_given(rows, dim, budget)]
    elif rows < EXACT_BELOW and exact.build_memory <= budget.memory:
        plans = [exact]
    else:
        rungs = [rung for rung in _RUNGS if rung.kind[0] != "H" or 0 < budget.max_latency < HNSW_LATENCY]
        plans = [_plan(rung, rows, dim, budget.memory) for rung in rungs]
        held = [plan.expected_recall for plan in plans if plan.build_memory <= budget.memory]
        if max(held, default=0) < budget.min_recall:
            plans.append(_plan(_ON_DISK, rows, dim, budget.memory))
        plans.append(exact)
    fitting = [plan for plan in plans if plan.build_memory <= budget.memory]
    if not fitting:
        least = min(plans, key=lambda plan: plan.build_memory)
        raise ValueError(
            f"no index of {rows} vectors of width {dim} is built within {size_text(budget.memory)}; the smallest, "
            f"{least.factory}, takes {size_text(least.build_memory)}: give that as --max-memory"
        )
    return fitting


def _exact(dim: int, rows: int) -> Plan:
    return Plan("Flat", "", 4 * dim, 1.0, _standing_bytes(dim) + 4 * dim * rows)


def _plan(rung: _Rung, rows: int, dim: int, memory: int) -> Plan:
    parts = next(dim // width for width in (4, 2, 3, 5, 7, 1) if dim % width == 0)
    if "RaBitQ" not in rung.kind and parts * 4 != dim:
        rung = _Rung(rung.kind, rung.bits - 1 + 4 * parts / dim, rung.fixed, 4 * parts / dim, rung.recall)
    lists = list_count(rows, dim, memory)
    size = rung.bits * dim / 8 + rung.fixed + 4 * dim * lists / rows * ("IVF" in rung.kind)
    held = (rung.held * dim / 8 + rung.fixed) * rows * 1.3  # lists grow by doubling
    sample = _sample_bytes(dim) * lists if "IVF" in rung.kind else 4 * dim * 65_536
    peak = _standing_bytes(dim) + max(sample, held, size * rows)  # it is measured in memory, at last
    plan = Plan(rung.kind.format(lists=lists, parts=parts), "", size, rung.recall, int(peak))
    return _in_parts(plan, dim, memory, lists, sample)


def _in_parts(plan: Plan, dim: int, memory: int, lists: int, sample: float) -> Plan:
    """With as many codes held at a time as memory has room for, where it has none for all and lists can be merged."""
    if plan.build_memory <= memory or not ends_in_lists(check_factory(plan.factory, dim)):
        return plan
    each, shared = 2 * plan.bytes_per_vector, 12 * dim * lists  # lists grow by doubling; centroids, and as written
    rows = max(BLOCK_ROWS, int((memory - _standing_bytes(dim) - shared) / each))
    peak = _standing_bytes(dim) + max(sample, shared + rows * each)
    return replace(plan, build_memory=int(peak), part_rows=rows)


def list_count(rows: int, dim: int, memory: int) -> int:
    """Inverted lists: a power of two near 4 sqrt(rows), fewer where memory holds no sample to train so many."""
    wanted = 2 ** round(math.log2(4 * math.sqrt(rows)))
    room = max(memory - _standing_bytes(dim), 0) / _sample_bytes(dim)
    held = min(room, rows / POINTS_PER_CENTROID)
    return min(wanted, max(16, 2 ** int(math.log2(max(held, 1)))), _LARGEST)


def _standing_bytes(dim: int) -> int:
    """Of the process, and of the blocks of rows in its hands."""
    return PROCESS_BYTES + 12 * dim * BLOCK_ROWS


def _sample_bytes(dim: int) -> float:
    """Of what one list is trained from, and what training makes of it."""
    return 4 * dim * POINTS_PER_CENTROID * 1.7


def _given(rows: int, dim: int, budget: Budget) -> Plan:
    check_factory(budget.factory, dim, rows)
    if budget.factory == "Flat":
        return replace(_exact(dim, rows), search=budget.search)
    found = re.search(r"IVF(\d+)", budget.factory)
    lists, refined = int(found[1]) if found else 0, budget.factory.rpartition(",")[2]
    size = bytes_of(budget.factory, dim) + 4 * dim * lists / rows
    held = size * rows * (1 if "R" in refined else 1.5)
    sample = _sample_bytes(dim) * min(max(lists, 16_384 / POINTS_PER_CENTROID), rows / POINTS_PER_CENTROID)
    peak = _standing_bytes(dim) + max(held, sample)
    return _in_parts(Plan(budget.factory, budget.search, size, math.nan, int(peak)), dim, budget.memory, lists, sample)


def bytes_of(factory: str, dim: int) -> float:
    """Bytes of one vector in an index of this kind, without what all of them share. Errors: ValueError."""
    import faiss

    index = check_factory(factory, dim)
    try:
        if isinstance(index, faiss.IndexHNSW):
            storage = faiss.downcast_index(index.storage)
            return storage.sa_code_size() + 4 * (index.hnsw.cum_nb_neighbors(1) + 1) + 12
        return index.sa_code_size() + 8 * ("IVF" in factory)  # whose lists hold row numbers
    except RuntimeError as error:
        reason = first_line(error).rpartition(": ")[2][:160]
        raise ValueError(f"factory {factory!r} has no codes of a known size ({reason}); such as HNSW32,SQ8") from None


def check_factory(factory: str, dim: int, rows: int | None = None) -> faiss.Index:
    """An empty index of this kind. Errors: ValueError, one line, where FAISS knows none, or `rows` are too few."""
    import faiss

    _check_bounds(factory, dim)
    lists = re.search(r"IVF(\d+)", factory)
    if rows is not None and lists and int(lists[1]) > rows:
        raise ValueError(f"factory {factory!r}: {lists[1]} lists for {rows} vectors; give at most one for each")
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = first_line(error).rpartition(": ")[2][:160]
        raise ValueError(
            f"factory {factory!r} is no index of width {dim} ({reason}); such as IVF1024,PQ{dim // 4}x4fs,Refine(SQ8)"
        ) from None


def _check_bounds(factory: str, dim: int) -> None:
    """What FAISS would allocate as soon as it reads the string. Errors: ValueError."""
    if len(factory) > _LARGEST_CODE or max(_numbers(factory)) > _LARGEST:
        raise ValueError(f"factory {factory[:200]!r}: numbers go up to {_LARGEST}")
    if max(_numbers(re.sub(r"IVF\d+", "", factory))) > _LARGEST_CODE:
        raise ValueError(f"factory {factory!r}: numbers other than of lists go up to {_LARGEST_CODE}")
    for code in re.findall(r"\d+(?:x\d+)+", factory):
        *parts, bits = _numbers(code)
        most = 10 if "IMI" in factory else _MOST_BITS
        if bits > most or math.prod(parts) * 4 * dim * 2**bits > _CODEBOOK_BYTES:
            raise ValueError(
                f"factory {factory!r}: {code} asks for codebooks that are too large; give at most {most} bits, or 8"
            )


def check_search(search: str) -> None:
    """Errors: ValueError for what are no search parameters, or ones that take any amount of memory."""
    for item in filter(None, search.split(",")):
        name, equals, value = item.partition("=")
        if name not in _PARAMETERS or not equals:
            raise ValueError(f"search parameter {item!r} is none of {', '.join(_PARAMETERS)}; write nprobe=16")
        if not re.fullmatch(r"\d{1,9}(\.\d{1,3})?", value) or not 1 <= float(value) <= _PARAMETERS[name]:
            raise ValueError(f"search parameter {item!r}: {name} is a number from 1 to {_PARAMETERS[name]}")


def check_parameters(factory: str, search: str, dim: int) -> None:
    """Errors: ValueError where an index of this kind has no such search parameters."""
    import faiss

    check_search(search)
    try:
        faiss.ParameterSpace().set_index_parameters(check_factory(factory, dim), search)
    except RuntimeError:
        raise ValueError(f"search parameters {search!r} do not fit an index {factory!r}") from None


def _numbers(text: str) -> list[int]:
    return [int(number[:12]) for number in re.findall(r"\d+", text)] or [0]


def size(text: str) -> int:
    """Bytes of 512MB, 2GB, 300MiB, 1e9. Errors: ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]\d{1,2})?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size; write 512MB, 2GB or 300MiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def milliseconds(text: str) -> float:
    """Of 5, 5ms, 0.2s. Errors: ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|)\s*", text)
    if not found:
        raise ValueError(f"{text!r} is no duration; write 5ms or 0.2s")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def size_text(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


def free_memory() -> int:
    """Bytes that are free, caches included, on this machine and within the limit of its container, if there is one."""
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.is_file() else None
    machine = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(machine, _left_in_group(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))))


def _left_in_group(listing: Path, mounted: Path) -> float:
    """Bytes that the control groups of this process, of version 2 or 1, leave it; infinity without a limit."""
    left = math.inf
    for line in listing.read_text().splitlines() if listing.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        inner = mounted / controllers / group.strip("/")
        for folder in (inner, *inner.parents):  # each limits what is in it; a container sees its own as the root
            if not folder.is_relative_to(mounted):
                break
            with suppress(OSError, ValueError):  # not there, or "max"
                most, used = (int((folder / name).read_text()) for name in names)
                cached = re.search(r"^(?:total_)?inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
                left = min(left, max(most - used + (int(cached[1]) if cached else 0), 0))
    return left
