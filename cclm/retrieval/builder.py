"""Writing a segment: rows are stored as they come, then indexed by the first plan of the ladder that holds its budget.

N rows, E embedding. No more than some blocks of rows are held; codes that are laid out row by row go to the file.
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa

from cclm.errors import first_line
from cclm.retrieval.among import inner_of
from cclm.retrieval.manifest import INDEX_FILE, METADATA_FILE, VECTORS_FILE, Measured, Segment
from cclm.retrieval.metadata import MetadataWriter, Rows
from cclm.retrieval.partitions import Partitions
from cclm.retrieval.plan import BLOCK_ROWS, POINTS_PER_CENTROID, Budget, Plan, check_factory, ladder, size_text
from cclm.retrieval.tuning import Sample, chosen, draw, tune
from cclm.retrieval.vectors import Vectors, flat_part, unit
from cclm.storage import file_hash, whole_folder

if TYPE_CHECKING:
    import faiss

logger = logging.getLogger(__name__)

_NEAREST = ".nearest"  # index so far


def write_segment(
    parts: Sequence[Rows],
    folder: Path,
    first_id: int = 0,
    budget: Budget | None = None,
    texts: np.ndarray | None = None,
    strict: bool = False,
) -> Segment:
    """Index the rows of `parts` in a new segment folder; their ids count from `first_id` where they have none.

    Vectors are scaled to unit norm. `parts` are read twice, one at a time. `texts`: embeddings of queries to measure
    with (Q, E); rows themselves by default. Where none that fits the memory reaches the budget's recall and latency,
    the nearest is taken, with a warning, unless `strict`. Errors: ValueError for no rows, NaN, infinity or zeros,
    changing widths, and where no index holds the budget.
    """
    budget = budget or Budget()
    rows, dim = _survey(parts)
    plans = planned(rows, dim, budget)
    with whole_folder(folder) as path:
        writer = MetadataWriter(path / METADATA_FILE, first_id)
        try:
            incoming = _blocks(parts, writer, dim)
            if plans[0].factory == "Flat":
                _write_index(check_factory("Flat", dim), incoming, rows, path)
            else:
                _write_vectors(incoming, rows, dim, path / VECTORS_FILE)
        finally:
            writer.close()
        del incoming  # with what it has of the last part
        _give_back()
        sample = _sample(path, rows, dim, texts)
        plan, search, measured = _first_that_holds(plans, path, sample, budget, strict)
        if _is_exact(plan.factory, dim):
            (path / VECTORS_FILE).unlink(missing_ok=True)
        files = {file.name: file_hash(file) for file in sorted(path.iterdir())}
        size = (path / INDEX_FILE).stat().st_size
    return Segment(folder.name, rows, plan.factory, search, size / rows, files, measured=measured)


def planned(rows: int, dim: int, budget: Budget) -> list[Plan]:
    """The ladder; a factory of one's own is tried before. Errors: ValueError, one line, where nothing can be built."""
    plans = ladder(rows, dim, budget)
    if budget.factory:
        _try_factory(budget.factory, dim)
    return plans


@lru_cache(maxsize=64)
def _try_factory(factory: str, dim: int) -> None:
    """Build it of a few random rows, with few lists, read and search it. Errors: ValueError, one line."""
    small = re.sub(r"IVF\d+", "IVF4", factory)
    rows = 2 ** max(10, *map(int, re.findall(r"x(\d+)", factory)), 10)  # as many as codes of a part
    vectors = unit(np.random.default_rng(0).standard_normal((rows, dim)), "random rows")
    with TemporaryDirectory() as folder:
        path = Path(folder)
        _write_vectors([vectors], rows, dim, path / VECTORS_FILE)
        try:
            _build(Plan(small, "", 0, math.nan, 0), path)
            Vectors(path, small, "").search(vectors[:1], 1)
        except (RuntimeError, ValueError, AttributeError) as error:
            reason = first_line(error).replace(f"{folder}/", "").partition(";")[0].rpartition("Error: ")[2][:200]
            raise ValueError(
                f"factory {factory!r} cannot be built, stored and searched ({reason}); such as HNSW32,SQ8"
            ) from None


def _survey(parts: Sequence[Rows]) -> tuple[int, int]:
    """Rows and width of all parts."""
    total, width = 0, 0
    for rows in parts:
        if rows.vectors.ndim != 2:
            raise ValueError(f"embeddings from row {total} on: shape is {rows.vectors.shape}, expected (rows, width)")
        if width and rows.vectors.shape[1] != width and len(rows):
            raise ValueError(f"embedding width changes from {width} to {rows.vectors.shape[1]} on the way")
        width, total = (rows.vectors.shape[1] if len(rows) else width), total + len(rows)
    if not total:
        raise ValueError("no pictures to index: the source is empty")
    return total, width


def _blocks(parts: Iterable[Rows], writer: MetadataWriter, dim: int) -> Iterator[np.ndarray]:
    """Every row once, (up to BLOCK_ROWS, E) of unit norm; what is known of them is written beside."""
    done = 0
    for rows in parts:
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows.vectors[start : start + BLOCK_ROWS]
            yield unit(block, f"embeddings from row {done + start} on")
            _unmap(block)
        writer.write(rows.entries)
        done += len(rows)


def _unmap(block: np.ndarray) -> None:
    """Have the pages of a memory-mapped file that were read count no longer as ours; they are there if read again."""
    base: object = block
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _give_back() -> None:
    """Return to the system what was freed: it would count as used until the end."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _write_vectors(blocks: Iterable[np.ndarray], rows: int, dim: int, path: Path) -> None:
    with open(path, "wb") as handle:
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(handle, header)
        for block in blocks:
            handle.write(block.astype("<f2").tobytes())


def _read_vectors(path: Path, rows: int, dim: int) -> Iterator[np.ndarray]:
    """The rows (up to BLOCK_ROWS, E) float32 of unit norm; read, not mapped, so that they leave no trace in memory."""
    with open(path, "rb") as handle:
        handle.seek(-2 * rows * dim, 2)
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            yield unit(np.fromfile(handle, "<f2", count * dim).reshape(count, dim), f"vectors from row {start} on")


def _sample(path: Path, rows: int, dim: int, texts: np.ndarray | None) -> Sample:
    if texts is not None:
        texts = unit(texts, "texts")
    if (path / VECTORS_FILE).exists():
        return draw(lambda: _read_vectors(path / VECTORS_FILE, rows, dim), rows, texts)
    stored = Vectors(path, "Flat", "")

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, rows, BLOCK_ROWS):
            yield stored.take(np.arange(start, min(start + BLOCK_ROWS, rows)))

    return draw(blocks, rows, texts, exact=True)


def _first_that_holds(
    plans: Sequence[Plan], path: Path, sample: Sample, budget: Budget, strict: bool
) -> tuple[Plan, str, Measured]:
    """Build plan after plan until one reaches what is asked, or else keep the nearest.

    Errors: ValueError that tells what came nearest, where `strict`, or where none is built.
    """
    nearest: tuple[Plan, str, Measured] | None = None
    too_coarse = 0.0  # the highest recall expected of a plan that missed it
    for plan in plans:
        if plan.expected_recall <= too_coarse:
            logger.info("not built, as a better one misses the recall: %s", plan)
            continue
        tried = _tried(plan, path, sample, budget)
        if tried is None:
            continue
        measured = tried[1]
        if not _missed(measured, budget) or budget.factory:  # chosen by hand, it stands; the numbers tell what it is
            (path / _NEAREST).unlink(missing_ok=True)
            return plan, *tried
        logger.warning("%s reached %s", plan.factory, _missed(measured, budget))
        if measured.recall < budget.min_recall:
            too_coarse = max(too_coarse, plan.expected_recall)
        if nearest is None or _nearness(measured, budget) > _nearness(nearest[2], budget):
            nearest = plan, *tried
            (path / INDEX_FILE).replace(path / _NEAREST)
    asked = (
        f"recall {budget.min_recall} within {budget.max_latency or 'any'} ms and {size_text(budget.memory)} of memory"
    )
    cure = "ask for less of --min-recall, or give more --max-memory or --max-latency"
    if nearest is None:
        raise ValueError(f"no index reaches {asked}: each took more memory than there is; {cure}")
    plan, _, measured = nearest
    told = f"no index reaches {asked}; nearest: {plan.factory} reached {_missed(measured, budget)}; {cure}"
    if strict:
        raise ValueError(told)
    logger.warning("%s; that one is taken", told)
    (path / _NEAREST).replace(path / INDEX_FILE)
    return nearest


def _tried(plan: Plan, path: Path, sample: Sample, budget: Budget) -> tuple[str, Measured] | None:
    """Build it, and measure what it reaches with which search parameters; None where memory does not suffice."""
    logger.info("building %s", plan)
    try:
        if (path / VECTORS_FILE).exists():
            _build(plan, path)
        return tune(Vectors(path, plan.factory, plan.search), sample, budget)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "bad_alloc" not in str(error):
            raise ValueError(f"index {plan.factory} cannot be built ({first_line(error)[:200]})") from error
        logger.warning("%s took more memory than there is", plan.factory)
        return None
    finally:
        _give_back()


def _nearness(measured: Measured, budget: Budget) -> tuple[float, float]:
    """The recall, of which none is wanted above what is asked for, and then the speed."""
    return min(measured.recall, budget.min_recall), -measured.latency_ms


def _missed(measured: Measured, budget: Budget) -> str:
    """What of the budget an index does not hold; "" if it does."""
    wrong = measured.recall < budget.min_recall or 0 < budget.max_latency < measured.latency_ms
    return f"recall {measured.recall:.3f} in {measured.latency_ms:.2f} ms" if wrong else ""


def _build(plan: Plan, path: Path) -> None:
    """Train on a sample, add all rows, write image.index."""
    with open(path / VECTORS_FILE, "rb") as handle:
        np.lib.format.read_magic(handle)
        (rows, dim), _, _ = np.lib.format.read_array_header_1_0(handle)
    index = check_factory(plan.factory, dim)

    def blocks() -> Iterator[np.ndarray]:
        return _read_vectors(path / VECTORS_FILE, rows, dim)

    if not index.is_trained:
        _train(index, blocks(), rows)
        _give_back()
    _write_index(index, blocks(), rows, path, plan.part_rows)
    del index
    _give_back()


def _train(index: faiss.Index, blocks: Iterable[np.ndarray], rows: int) -> None:
    import faiss

    lists = 0
    try:
        clustered = faiss.extract_index_ivf(index)
    except RuntimeError:  # not of that kind
        clustered = None
    if clustered is not None:
        lists = clustered.nlist
        clustered.cp.min_points_per_centroid = 1  # a small sample is our choice
        if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
            clustered.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(clustered.d))
    _train_codes_plainly(index)
    count = min(rows, max(POINTS_PER_CENTROID * lists, 16_384))
    picked = np.sort(np.random.default_rng(0).permutation(rows)[:count])
    index.train(chosen(blocks, picked))
    if clustered is not None:
        clustered.clustering_index = None


def _train_codes_plainly(index: faiss.Index) -> None:
    """Without an order of product codes that only comparisons of their bits need, and that takes most of the time."""
    import faiss

    inner = inner_of(index)
    if isinstance(inner, faiss.IndexHNSW):
        inner = faiss.downcast_index(inner.storage)
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False
    for codes in (getattr(inner, name) for name in ("pq", "rq") if hasattr(inner, name)):
        codes.cp.min_points_per_centroid = 1


def _is_exact(factory: str, dim: int) -> bool:
    """Whether an index holds, beside its codes, the vectors as they are."""
    return flat_part(check_factory(factory, dim)) is not None


def _write_index(index: faiss.Index, blocks: Iterable[np.ndarray], rows: int, path: Path, part_rows: int = 0) -> None:
    """Add the rows and write image.index, as FAISS would write it.

    Codes that it lays out row by row are not held, and those in lists `part_rows` at a time, or all of them.
    """
    import faiss

    refined = isinstance(index, faiss.IndexRefine)
    fine = faiss.downcast_index(index.refine_index) if refined else index
    if not isinstance(fine, faiss.IndexFlat | faiss.IndexScalarQuantizer):
        added = Partitions(index, part_rows, path)
        for block in blocks:
            added.add(block)
        added.write(path / INDEX_FILE)
        return
    base = faiss.downcast_index(index.base_index) if refined else None
    empty = b"" if base is None else faiss.serialize_index(base).tobytes()
    index.ntotal = fine.ntotal = rows
    own = faiss.serialize_index(fine).tobytes()
    whole = faiss.serialize_index(index).tobytes()
    place = whole.rindex(empty + own)
    before, after = whole[:place], whole[place + len(empty) + len(own) :]
    codes, coarse = path / ".codes", path / ".coarse"
    added = None if base is None else Partitions(base, part_rows, path)
    try:
        with open(codes, "wb") as handle:
            for block in blocks:
                handle.write(fine.sa_encode(block).tobytes())
                if added is not None:
                    added.add(block)
        count = codes.stat().st_size // (4 if isinstance(fine, faiss.IndexFlat) else 1)
        with open(path / INDEX_FILE, "wb") as handle:
            handle.write(before)
            if added is not None:
                added.write(coarse)
                _append(handle, coarse)
            handle.write(own[:-8] + count.to_bytes(8, "little"))  # it ends in its number of codes
            _append(handle, codes)
            handle.write(after)
    finally:  # a plan that memory does not hold leaves the folder to the next one
        codes.unlink(missing_ok=True)
        coarse.unlink(missing_ok=True)


def _append(handle: BinaryIO, part: Path) -> None:
    with open(part, "rb") as source:
        shutil.copyfileobj(source, handle, 2**20)
    part.unlink()
