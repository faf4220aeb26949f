"""Is anything lost when a writer is killed, at any moment of appends, replacements, deletions and compactions?

    python benchmarks/killed_writers.py [--kills 200]

A writer process changes an index; of each change it notes, fsynced, that it begins and that it has returned. Half of
the kills come after a random time, half in a phase drawn at random. After each one the index must open, its files be
those that it names, and its rows be exactly those of the changes that had returned, or of these and the one that had
begun. A reader process opens and searches all the while, and checks each hit.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from machine import facts, write

from cclm.retrieval import living, versions
from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import IndexManifest, ModelSource
from cclm.retrieval.metadata import Entry, Rows

DIM, KEYS, MOST = 32, 4000, 400  # MOST: pictures of one change
PHASES = ("between changes", "checking keys", "segment", "deletions", "manifest", "removing files", "opening")
State = dict[int, int]  # picture -> its version


def vectors_of(pictures: np.ndarray, version: np.ndarray) -> np.ndarray:
    """Embeddings (N, E), unit norm, that tell picture and version."""
    steps = np.arange(1, DIM + 1) * (1 + 0.61803398875 * pictures[:, None] + 0.41421356237 * version[:, None])
    found = np.sin(steps**1.5)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def rows_of(pictures: np.ndarray, version: int) -> Rows:
    entries = [Entry(f"p{picture}", {"en": [f"version {version}"]}, size=version) for picture in pictures]
    return Rows.of(entries, vectors_of(pictures, np.full(len(pictures), version)))


def change_after(number: int, state: State, seed: int) -> dict[str, Any]:
    """What the writer does next."""
    generator = np.random.default_rng((seed, number))
    there, absent = np.array(sorted(state), int), np.array(sorted(set(range(KEYS)) - set(state)), int)
    kind = generator.choice(["append", "replace", "delete", "compact"], p=[0.35, 0.25, 0.25, 0.15])
    if kind == "append" and not len(absent):
        kind = "delete"
    if kind == "delete" and not len(there):
        kind = "append"
    among = {"append": absent, "delete": there, "replace": np.arange(KEYS), "compact": there[:0]}[kind]
    count = min(len(among), int(generator.integers(1, MOST)))
    pictures = generator.choice(among, count, replace=False) if count else among
    return {"number": number, "kind": str(kind), "pictures": pictures.tolist()}


def changed(state: State, change: dict[str, Any]) -> State:
    if change["kind"] == "delete":
        return {picture: version for picture, version in state.items() if picture not in set(change["pictures"])}
    return state | dict.fromkeys(change["pictures"], change["number"])


class Phase:
    """Which of PHASES the writer is in: one byte that it shares, and that outlives it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(b"\0")
        with open(path, "r+b") as handle:
            self._memory = mmap.mmap(handle.fileno(), 1)

    def get(self) -> int:
        return self._memory[0]

    def begin(self) -> None:
        """Forget the phase in which a former writer was killed."""
        self._memory[0] = 0

    def note(self, phase: str, function: Callable) -> Callable:
        """The same function, which notes that it is at work."""

        @wraps(function)
        def noted(*arguments: Any, **named: Any) -> Any:
            before, self._memory[0] = self._memory[0], PHASES.index(phase)
            try:
                return function(*arguments, **named)
            finally:
                self._memory[0] = before

        return noted


def note_phases(phase: Phase) -> None:
    phase.begin()
    living.IndexWriter._outline = phase.note("checking keys", living.IndexWriter._outline)
    living.write_segment = phase.note("segment", living.write_segment)
    living.with_deletions = phase.note("deletions", living.with_deletions)
    IndexManifest.write = phase.note("manifest", IndexManifest.write)
    versions._sweep = phase.note("removing files", versions._sweep)
    ImageIndex.open = phase.note("opening", ImageIndex.open)


def run_writer(work: Path, seed: int, state: State, number: int) -> None:
    """Change after change, until it is killed."""
    note_phases(Phase(work / "phase"))
    with open(work / "log", "a", encoding="utf-8") as log, living.IndexWriter(work / "index", 60) as writer:

        def tell(what: str, change: dict[str, Any]) -> None:
            log.write(json.dumps({what: change}) + "\n")
            log.flush()
            os.fsync(log.fileno())

        while True:
            change = change_after(number, state, seed)
            tell("begins", change)
            pictures = np.array(change["pictures"], int)
            match change["kind"]:
                case "append":
                    writer.append([rows_of(pictures, number)])
                case "replace":
                    writer.replace([rows_of(half, number) for half in np.array_split(pictures, 2) if len(half)])
                case "delete":
                    writer.delete(keys=[f"p{picture}" for picture in pictures])
                case "compact":
                    writer.compact()
            tell("returned", change)
            state, number = changed(state, change), number + 1


def run_reader(work: Path, seed: int, stop: Any, results: Any) -> None:
    """Opens, anew or from a former version, and searches; each hit must be as its entry says."""
    generator, count, errors = np.random.default_rng(seed), Counter(), []
    index = None
    while not stop.is_set():
        try:
            index = ImageIndex.open(work / "index", index if generator.random() < 0.7 else None)
            count["opened"] += 1
            for _ in range(3):
                queries = generator.standard_normal((4, DIM)).astype(np.float32)
                queries /= np.linalg.norm(queries, axis=1, keepdims=True)
                for query, hits in zip(queries, index.search(queries, min(5, max(len(index), 1))), strict=True):
                    pictures = np.array([int(hit.entry.key[1:]) for hit in hits], int)
                    told = np.array([hit.entry.size for hit in hits], int)
                    scores = vectors_of(pictures, told) @ query
                    if not np.allclose(scores, [hit.score for hit in hits], atol=1e-4):
                        raise ValueError(f"hits {pictures} of version {told} have scores {scores}")
                count["searches"] += 1
        except Exception as error:  # whatever it is: there must be none
            errors.append(f"{type(error).__name__}: {error}"[:300])
    results.put({**count, "errors": errors})


def contents(index: ImageIndex) -> State:
    """What is there. Errors: ValueError where an embedding is not its entry's."""
    found: State = {}
    for segment in index.segments:
        rows = np.arange(segment.segment.rows) if segment.live is None else np.flatnonzero(segment.live)
        table = segment.metadata.table(0, len(segment.metadata), ("key", "size")).take(rows)
        pictures = np.array([int(key[1:]) for key in table["key"].to_pylist()], int)
        told = table["size"].to_numpy()
        if not np.allclose(segment.vectors(rows), vectors_of(pictures, told), atol=1e-3):
            raise ValueError(f"segment {segment.segment.name} has embeddings of other pictures")
        if set(pictures.tolist()) & set(found) or len(set(pictures.tolist())) < len(pictures):
            raise ValueError("a key is there twice")
        found |= dict(zip(pictures.tolist(), told.tolist(), strict=True))
    return found


def logged(path: Path) -> list[dict[str, Any]]:
    """What a writer told; the last line may be cut off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_and_kill(process: Any, work: Path, generator: np.random.Generator, targeted: bool) -> str:
    """Tells the phase that it was in."""
    phase = Phase(work / "phase")
    while not logged(work / "log") and process.is_alive():
        time.sleep(0.002)
    wanted, patience = int(generator.integers(len(PHASES))), time.monotonic() + 3
    time.sleep(float(generator.uniform(0, 0.6)))
    while targeted and phase.get() != wanted and time.monotonic() < patience:
        pass
    if targeted:
        time.sleep(float(generator.exponential(0.0002)))
    if not process.is_alive():
        raise RuntimeError(f"the writer ended by itself with status {process.exitcode}")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return PHASES[phase.get()]


def run(kills: int, seed: int, work: Path) -> dict[str, Any]:
    model = work / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"no weights")
    state: State = dict.fromkeys(range(200), 0)
    build_index([rows_of(np.arange(200), 0)], work / "index", ModelSource.of(model))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faiss", "cclm.retrieval.living"])
    stop, results = context.Event(), context.Queue()
    reader = context.Process(target=run_reader, args=(work, seed, stop, results), daemon=True)
    reader.start()
    generator, number = np.random.default_rng(seed), 1
    phases: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    outcome: Counter[str] = Counter()
    for kill in range(kills):
        (work / "log").unlink(missing_ok=True)
        process = context.Process(target=run_writer, args=(work, seed, state, number), daemon=True)
        process.start()
        phases[wait_and_kill(process, work, generator, kill % 2 == 1)] += 1
        lines = logged(work / "log")
        for line in lines:
            if "returned" in line:
                state = changed(state, line["returned"])
                kinds[line["returned"]["kind"]] += 1
        begun = lines[-1].get("begins") if lines else None
        number += sum("begins" in line for line in lines)
        try:
            found = contents(ImageIndex.open(work / "index"))
        except (ValueError, OSError) as error:
            outcome["unopened"] += 1
            raise SystemExit(f"kill {kill}: the index does not open: {error}") from error
        if begun and found == changed(state, begun) and found != state:
            state = found
            outcome["begun and there"] += 1
        elif found == state:
            outcome["begun and not there" if begun else "nothing begun"] += 1
        else:
            outcome["lost"] += 1
            raise SystemExit(f"kill {kill}: {len(found)} pictures are there, {len(state)} were acknowledged")
    stop.set()
    read = results.get(timeout=60)
    reader.join()
    return {
        "kills": kills,
        "unopened": outcome.pop("unopened", 0),
        "lost": outcome.pop("lost", 0),
        "acknowledged": sum(kinds.values()),
        "acknowledged_by_kind": dict(kinds),
        "killed_in": {phase: phases[phase] for phase in PHASES},
        "change_at_the_kill": dict(outcome),
        "reader_opened": read.get("opened", 0),
        "searches": read.get("searches", 0),
        "reader_errors": len(read["errors"]),
        "first_reader_error": next(iter(read["errors"]), ""),
        "rows_at_the_end": len(state),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where to work, on a disk that counts; removed")
    parser.add_argument("--no_record", action="store_true", help="only show the result")
    given = parser.parse_args()
    work = given.folder or Path(tempfile.mkdtemp(prefix="killed-writers-"))
    start = time.monotonic()
    try:
        result = run(given.kills, given.seed, work) | {"seconds": round(time.monotonic() - start, 1)}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if given.no_record:
        print(json.dumps(result, indent=2))
    else:
        write("killed_writers", facts() | result)


if __name__ == "__main__":
    main()
