"""Running the application: the socket first, so that a port in use is told before a model is loaded."""

from __future__ import annotations

import errno
import gc
import ipaddress
import logging
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from cclm.errors import first_line
from cclm.retrieval.service.connections import Connection

GRACE_SECONDS = 30  # for requests that are being answered when the service is told to end
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can ask."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def use_threads(count: int) -> None:
    """How many the model and the index compute with: a core that is left answers the requests meanwhile."""
    import faiss
    import torch

    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, not yet listening; port 0 takes any that is free. Errors: ValueError, one line."""
    if not 0 <= port < 2**16:
        raise ValueError(f"port is {port}; give one from 0 (any that is free) to {2**16 - 1}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is in use; give another by --port, or 0 for any") from None
        raise ValueError(f"cannot listen on port {port} of {host}: {first_line(error)}; give others") from None
    return bound


def address_of(bound: socket.socket, host: str) -> str:
    """The URL to open."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}/"


class Server(uvicorn.Server):
    """Serves until SIGTERM, SIGINT or `should_exit`; requests that are being answered then are answered.

    `on_start` is called once the service answers.
    """

    def __init__(self, app: ASGIApp, on_start: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                access_log=False,  # its lines would hold what people ask for
                server_header=False,
                proxy_headers=False,  # anybody could write them
                lifespan="on",
                ws="none",
                backlog=1024,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        logging.getLogger("uvicorn.access").disabled = True  # whoever turns logs on: see access_log
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.collect()
            gc.freeze()  # else each full collection walks through all of torch, a third of a second long
            self._on_start()
