"""Concurrent clients on one event loop, as light as Python allows: raw bytes out, lengths counted, nothing parsed.

python benchmarks/clients.py PORT BODIES SECONDS CLIENTS   # BODIES: a JSON body per line, in turn; prints one JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import uvloop

_LENGTH = b"content-length: "


class Client(asyncio.Protocol):
    """Asks, waits for the whole answer, asks again."""

    def __init__(self, requests: Iterator[bytes], until: float, ended: asyncio.Event) -> None:
        self._requests, self._until, self._ended = requests, until, ended
        self._buffer, self._missing, self._asked = b"", -1, 0.0
        self.times: list[float] = []
        self.statuses: Counter[str] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        if self._asked >= self._until:
            self._transport.close()
            return
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            start = self._buffer.find(_LENGTH) + len(_LENGTH)
            length = int(self._buffer[start : self._buffer.find(b"\r", start)])
            self.statuses[self._buffer[9:12].decode()] += 1
            self._missing = end + 4 + length - len(self._buffer)
            self._buffer = b""
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._missing = -1
            self.times.append(time.perf_counter() - self._asked)
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self._until:
            self.statuses["lost"] += 1
        self._ended.set()


def requests_of(bodies: Path, host: str) -> list[bytes]:
    head = f"POST /api/search HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies.read_bytes().splitlines()]


async def run(port: int, bodies: Path, seconds: float, count: int) -> dict[str, object]:
    requests = requests_of(bodies, f"127.0.0.1:{port}")
    asked = cycle(requests)
    start, used = time.perf_counter(), time.process_time()
    clients = [(Client(asked, start + seconds, ended), ended) for ended in (asyncio.Event() for _ in range(count))]
    for client, _ in clients:
        await asyncio.get_running_loop().create_connection(lambda own=client: own, "127.0.0.1", port)
    for _, ended in clients:
        await ended.wait()
    elapsed = time.perf_counter() - start
    times = sorted(time for client, _ in clients for time in client.times)
    statuses = sum((client.statuses for client, _ in clients), Counter())
    return {
        "requests": len(times),
        "statuses": dict(statuses),
        "seconds": elapsed,
        "per_s": len(times) / elapsed,
        "ms": {f"p{share}": 1000 * times[min(len(times) * share // 100, len(times) - 1)] for share in (50, 90, 99)},
        "client_cpu_s": time.process_time() - used,
    }


if __name__ == "__main__":
    port, bodies, seconds, count = sys.argv[1:]
    print(json.dumps(uvloop.run(run(int(port), Path(bodies), float(seconds), int(count)))))
