"""Who does the tasks of a long job: this process, or the actors of a Ray cluster; and work done ahead by threads."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

from cclm.errors import first_line

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Done = TypeVar("Done")

ENGINES = ("local", "ray")
_BLOCKS = 1000  # what Ray Data schedules at once: so many blocks of tasks at the most


@dataclass(frozen=True)
class EngineOptions:
    """`name`: local or ray. The rest is of ray: the head's address ("": start one here), how many actors work at once
    (0: as many as the cluster has room for when the job begins), and the CPUs and GPUs that each takes.
    """

    name: str = "local"
    ray_address: str = ""
    actors: int = 0
    cpus_per_actor: int = 1
    gpus_per_actor: int = 0

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ValueError(f"engine is {self.name!r}; choose {' or '.join(ENGINES)}")
        if self.actors < 0 or self.cpus_per_actor < 1:
            raise ValueError(
                f"actors={self.actors}, cpus_per_actor={self.cpus_per_actor}; give 0 or more actors of 1 CPU or more"
            )


def run(tasks: Sequence[Task], make: Callable[[], Callable[[Task], Done]], engine: EngineOptions) -> Iterator[Done]:
    """Yield what came of each task, in the order in which they end. `make` makes the worker that does them: once here,
    once in each actor of a cluster, to which it and the tasks are sent, so they hold paths and settings, no models.

    A task may be done twice, where a node of a cluster dies: its outcome must not depend on that.
    Errors: those of the worker; ValueError where ray is not there or not to be reached.
    """
    if not tasks:
        return
    if engine.name == "ray":
        yield from _run_on_ray(tasks, make, engine)
        return
    worker = make()
    for task in tasks:
        yield worker(task)


def ahead(work: Callable[[Task], Done], items: Iterable[Task], most: int, threads: int = 2) -> Iterator[Done]:
    """Yield work(item) for each item, in order, while threads do the next ones: at most `most` outcomes wait."""
    waiting: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _run_on_ray(
    tasks: Sequence[Task], make: Callable[[], Callable[[Task], Done]], engine: EngineOptions
) -> Iterator[Done]:
    """Ray Data starts actors anew on the nodes that are left when one dies, and gives them what it had not finished."""
    with redirect_stdout(_WithoutRay(sys.stdout)):
        yield from _mapped(tasks, make, engine)


def _mapped(tasks: Sequence[Task], make: Callable[[], Callable[[Task], Done]], engine: EngineOptions) -> Iterator[Done]:
    ray = _connected(engine)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False  # the bar is ours
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised here
        room = _room([node["Resources"] for node in ray.nodes() if node["Alive"]], engine)
        actors = min(engine.actors or room, len(tasks))
        data = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=min(len(tasks), _BLOCKS))
        done = data.map_batches(
            _Actor,
            fn_constructor_args=(make,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            num_cpus=engine.cpus_per_actor,
            num_gpus=engine.gpus_per_actor or None,
        )
        for row in done.iter_rows():
            yield row["done"]
    except ray.exceptions.RayError as error:
        raise ValueError(first_line(_cause(error))) from error
    finally:
        ray.shutdown()


def _room(nodes: Sequence[dict[str, float]], engine: EngineOptions) -> int:
    """How many actors find a place on nodes with these resources. Errors: ValueError where none does, as Ray would
    wait for a larger node for ever.
    """
    wanted = {"CPU": engine.cpus_per_actor, "GPU": engine.gpus_per_actor}
    room = sum(min(int(node.get(kind, 0) // count) for kind, count in wanted.items() if count) for node in nodes)
    if not room:
        most = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes[:8])
        raise ValueError(
            f"an actor takes {wanted['CPU']} CPUs and {wanted['GPU']} GPUs, and no node of the Ray cluster has them "
            f"(there are {most}); give less as --cpus_per_actor, or --device cpu"
        )
    return room


class _WithoutRay(io.TextIOBase):
    """Standard output for all but Ray's own threads: these print the last log lines of a node that has died."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not threading.current_thread().name.startswith("ray_"):
            return self._stream.write(text)
        if text.strip():
            logger.info("ray: %s", text.strip())
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class _Actor:
    """A worker in a process of the cluster: made once, given one task after the other."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._worker = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        return {"done": [self._worker(task) for task in batch["task"]]}


def _connected(engine: EngineOptions) -> Any:
    """The module, connected. Errors: ValueError where it is not installed, or there is no cluster at the address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread that ends late starts no cluster of its own
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of what is not Python: it writes over our lines
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'cclm[ray]', on every node of the cluster") from None
    own = {"include_dashboard": False} if not engine.ray_address else {}
    try:
        with _logged_stderr(), _own_termination():
            ray.init(engine.ray_address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {engine.ray_address or 'this machine'}: {first_line(error)}") from None
    return ray


@contextmanager
def _own_termination() -> Iterator[None]:
    """Whoever terminates us meets our handler as before, not Ray's, which tells of the stack and cleans nothing up."""
    ours = signal.getsignal(signal.SIGTERM)
    yield
    if ours is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


@contextmanager
def _logged_stderr() -> Iterator[None]:
    """What code that is not Python writes to standard error meanwhile, Ray's greeting, goes to our log."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as spool:
        os.dup2(spool.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            spool.seek(0)
            logger.info("ray: %s", spool.read().decode(errors="replace").strip())


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, out of what Ray has wrapped it in."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error
