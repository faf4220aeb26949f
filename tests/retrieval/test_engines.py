"""Engines: work ahead keeps its order and bounds; a Ray cluster gives what this process does, a dead node or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cclm.data.shards import write_shards
from cclm.retrieval.engines import EngineOptions, _room, ahead, run
from tests.data.conftest import image_records
from tests.retrieval.extracting import contents, embed, load_together, receipts, write_tiny_model

PARTS = 24


class TestAhead:
    def test_order_and_bound(self) -> None:
        begun, lock = 0, threading.Lock()

        def work(number: int) -> int:
            nonlocal begun
            with lock:
                begun += 1
            time.sleep(0.002 * (number % 3))  # later ones may be done first
            return number * number

        taken = []
        for number, square in enumerate(ahead(work, range(50), most=6, threads=3)):
            taken.append(square)
            with lock:
                assert begun - number <= 6
        assert taken == [number * number for number in range(50)]

    def test_errors_and_stops_end_it(self) -> None:
        def work(number: int) -> int:
            return 1 // (3 - number)

        found = ahead(work, range(10), most=2)
        assert [next(found), next(found), next(found)] == [0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(found)
        assert list(found) == []

        def items() -> Iterator[int]:
            yield 1
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            list(ahead(work, items(), most=1))


class TestEngineOptions:
    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="engine is 'spark'; choose local or ray"):
            EngineOptions("spark")
        with pytest.raises(ValueError, match="cpus_per_actor=0; give"):
            EngineOptions(cpus_per_actor=0)

    def test_a_worker_is_made_once_and_only_for_tasks(self) -> None:
        made = []

        def make() -> Any:
            made.append(1)
            return str

        assert list(run([], make, EngineOptions())) == [] and not made
        assert list(run([1, 2], make, EngineOptions())) == ["1", "2"] and len(made) == 1

    def test_without_ray(self, tmp_path: Path) -> None:
        program = (
            "import sys; sys.modules['ray'] = None\n"
            "from cclm.retrieval.engines import EngineOptions, run\n"
            "try: list(run([1], lambda: str, EngineOptions('ray')))\n"
            "except ValueError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "--engine ray needs Ray: pip install 'cclm[ray]', on every node of the cluster\n"


@pytest.mark.timeout(300)
class TestRay:
    def test_an_actor_that_no_node_has_room_for_is_refused(self) -> None:
        """Ray would wait for ever."""
        nodes = [{"CPU": 3.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 2.0}, {"memory": 1e9}]
        assert _room(nodes, EngineOptions("ray", cpus_per_actor=2)) == 5
        assert _room(nodes, EngineOptions("ray", gpus_per_actor=1)) == 2
        for engine in (EngineOptions("ray", cpus_per_actor=9), EngineOptions("ray", gpus_per_actor=3)):
            with pytest.raises(ValueError, match="no node of the Ray cluster has them .there are 3 CPUs and 0 GPUs, 8"):
                _room(nodes, engine)

    def test_who_is_terminated_ends_in_his_own_way(self) -> None:
        pytest.importorskip("ray", reason="needs the extra `ray`")
        heard: list[int] = []
        former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        try:
            for _ in run([1, 2], lambda: str, EngineOptions("ray", cpus_per_actor=1)):
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, former)
        assert heard == [signal.SIGTERM] * 2

    def test_a_node_that_dies_midway_loses_nothing(self, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
        ray = pytest.importorskip("ray", reason="needs the extra `ray`")
        from ray.cluster_utils import Cluster

        model = write_tiny_model(tmp_path / "tiny")
        write_shards(image_records(PARTS * 10), tmp_path / "train", samples_per_shard=10)
        embed(tmp_path / "train", tmp_path / "local", model)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        there: list[int] = []
        try:
            second = cluster.add_node(num_cpus=1)
            capfd.readouterr()

            def killing(done: Iterable[Any], count: int) -> Iterator[Any]:
                """On the first receipt of a part, the second node goes, with the actor that is at work on it."""
                assert count == PARTS
                for number, receipt in enumerate(done):
                    if number == 0:
                        assert actors_by_node() == {cluster.head_node.node_id: 1, second.node_id: 1}
                        cluster.remove_node(second, allow_graceful=False)
                        there.append(len(receipts(tmp_path / "ray")))
                    yield receipt

            engine = EngineOptions("ray", cluster.address)
            found = embed(tmp_path / "train", tmp_path / "ray", model, engine, shown=killing, loading=load_together)
        finally:
            ray.shutdown()
            cluster.shutdown()
        assert there[0] < PARTS and found.manifest.parts == len(receipts(tmp_path / "ray")) == PARTS
        assert contents(tmp_path / "ray") == contents(tmp_path / "local")
        shown = capfd.readouterr()
        assert shown.out == "" and shown.err == ""


def actors_by_node() -> dict[str, int]:
    """Node -> its living actors that embed."""
    from ray._private.state import actors

    nodes = [
        actor["Address"]["NodeID"]
        for actor in actors().values()
        if actor["State"] == "ALIVE" and "MapWorker" in actor["ActorClassName"]
    ]
    return {node: nodes.count(node) for node in nodes}
