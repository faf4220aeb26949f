"""What a connection may do before there is a request that can be judged: how much it sends, how long, how many."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cclm.retrieval.service.limits import network, problem

HEAD_BYTES = 32 * 2**10  # of the request line and the headers; also of what follows a body
HEAD_SECONDS = 10.0
OF_ONE = 128  # connections of one client; a browser opens six
IN_ALL = 768  # most systems grant a process 1024 open files
_PART = 2**14  # bytes that the parser, which has no bounds, is given at once


class Connection(HttpToolsProtocol):
    """uvicorn's, within bounds: 431 for a long head, 408 for a slow one, 503 for one connection too many."""

    head_seconds: ClassVar[float] = HEAD_SECONDS
    _deadline: asyncio.TimerHandle | None = None
    _reading = False  # a request whose head is there; its body, if any, is not there as a whole
    _idle_bytes = 0  # since a head was complete, or something of a body came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.network = network(self.client[0] if self.client else "")
        same = sum(getattr(other, "network", None) == self.network for other in self.connections)
        if same > OF_ONE or len(self.connections) > IN_ALL:
            self._end(503, "too many connections; close some, or try again later")
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PART):
            if self.transport.is_closing():
                return
            if not self._reading and self._deadline is None:
                self._expect()
            part = data[start : start + _PART]
            self._idle_bytes += len(part)
            super().data_received(part)
            if self._idle_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._end(431, f"the request line and the headers are over {HEAD_BYTES} bytes; send less")

    def on_headers_complete(self) -> None:
        self._arrived()
        self._reading, self._idle_bytes = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._arrived()
        self._reading, self._idle_bytes = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if (
            self._reading and self.cycle.response_complete and not self.transport.is_closing()
        ):  # of a body that nobody reads
            self._expect()

    def _expect(self) -> None:
        self._arrived()
        message = f"the request did not arrive within {self.head_seconds:g} s"
        self._deadline = self.loop.call_later(self.head_seconds, self._end, 408, message)

    def _arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, status: int, message: str) -> None:
        """Hang up; tell why, unless something else is being told."""
        self._arrived()
        if self.transport.is_closing():
            return
        if self.cycle is None or (self.cycle.response_complete and not self._reading):
            answer = problem(status, message, {"connection": "close"})
            headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
            self.transport.write(start + headers + b"\r\n" + answer.body)
        self.transport.close()
