"""What stands before every route: who may ask, how much, and how long; counted, and logged without what was asked."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cclm.retrieval.service.metrics import Metrics

access_log = logging.getLogger("cclm.access")
logger = logging.getLogger(__name__)

LOGIN = "/api/login"
LOGIN_BYTES, LOGIN_SECONDS = 4096, 3.0  # anybody may send one
PUBLIC = ("/", "/healthz", LOGIN)  # without a token: they tell nothing of the pictures
CLIENTS = 10_000  # whose rates are remembered
LEAST_TOKEN = 16  # characters
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox")


class Refused(Exception):
    """A request that is not answered. `reason` is what is counted."""

    def __init__(self, status: int, reason: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json({"error": message}), status, headers, "application/json")


@dataclass(frozen=True)
class Limits:
    """What one service takes on."""

    body_bytes: int = 16 * 2**20
    requests_per_s: float = 200.0  # of one client, ten times as many at once; 0 for any number
    concurrent: int = 256  # requests being answered
    seconds: float = 30.0  # for a body to arrive, and for an answer

    def __post_init__(self) -> None:
        if self.body_bytes < 1024 or self.concurrent < 1 or self.seconds <= 0 or self.requests_per_s < 0:
            raise ValueError(
                f"limits are {self}; give body_bytes of 1024 or more, concurrent of 1 or more, seconds above 0 and "
                "requests_per_s of 0 (any number) or more"
            )


class Access:
    """Who may ask. `hosts`: names that a request may address; None for any. `origins`: other pages that may ask."""

    def __init__(
        self, token: str | None = None, hosts: frozenset[str] | None = None, origins: frozenset[str] = frozenset()
    ) -> None:
        if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
            raise ValueError(f"the token has {len(token)} characters; give {LEAST_TOKEN} or more of printable ASCII")
        self._token, self._hosts, self.origins = token, hosts, origins

    @property
    def cookie(self) -> str:
        """What a browser shows instead of the token: of no use elsewhere, and good until the token changes."""
        return hmac.new((self._token or "").encode(), b"cclm page", hashlib.sha256).hexdigest()

    def is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def check(self, method: str, path: str, headers: dict[bytes, bytes]) -> None:
        """Errors: Refused."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise Refused(421, "host", "this service is asked under another name; use localhost or the name of --host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self.origins and origin.partition("://")[2] != host:
            raise Refused(403, "origin", "pages of other origins may not ask; name them by --allow_origin")
        asking_leave = method == "OPTIONS" and origin and b"access-control-request-method" in headers
        if self._token is None or path in PUBLIC or asking_leave:
            return
        if not self._known(headers):
            raise Refused(
                401, "token", "a token is needed: Authorization: Bearer TOKEN", **{"www-authenticate": "Bearer"}
            )

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        own = cookie_name(headers.get(b"host", b"").decode("latin-1"))
        for cookie in headers.get(b"cookie", b"").decode("latin-1").split(";"):  # those of other servers may be odd
            name, _, value = cookie.strip().partition("=")
            if name == own and hmac.compare_digest(value.encode(), self.cookie.encode()):
                return True
        return False


def cookie_name(host: str) -> str:
    """A browser sends cookies to all ports of a host: each service there has a name of its own, by its Host header."""
    try:
        port = urlsplit(f"//{host}").port
    except ValueError:
        port = None
    return f"cclm-{port}" if port else "cclm"


def _name(host: str) -> str:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Rates:
    """A bucket of permits per client, which fills up again; a network of IPv6 is one client."""

    def __init__(self, per_second: float) -> None:
        self._rate, self._most = per_second, max(1.0, 10 * per_second)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (permits, when)

    def check(self, client: str, now: float) -> None:
        """Errors: Refused."""
        if not self._rate:
            return
        client = network(client)
        permits, when = self._buckets.pop(client, (self._most, now))
        permits = min(self._most, permits + (now - when) * self._rate)
        allowed = permits >= 1
        self._buckets[client] = (permits - allowed, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = str(max(1, round((1 - permits) / self._rate)))
            raise Refused(429, "rate", f"too many requests; ask again in {wait} s", **{"retry-after": wait})


def network(client: str) -> str:
    """What counts as one client: an address, or a network of IPv6."""
    if ":" not in client:
        return client
    try:
        return str(ipaddress.ip_network((client, 64), strict=False))
    except ValueError:
        return client


class Guard:
    """Wraps the whole application; plain ASGI, as it runs for every request."""

    def __init__(self, app: ASGIApp, limits: Limits, access: Access, metrics: Metrics) -> None:
        self._app, self._limits, self._access, self._metrics = app, limits, access, metrics
        self._rates, self._running = Rates(limits.requests_per_s), 0
        metrics.running.set_function(lambda: self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status = time.perf_counter(), 0

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _headed(message.get("headers", []))
            await send(message)

        counted = scope["path"] != LOGIN  # whoever has no token must not take the place of those who have
        self._running += counted
        try:
            self._check(scope, start)
            await self._app(scope, receive, answering)
        except Refused as refused:
            await self._refuse(refused, scope, receive, answering)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # the application has answered with 500
            logger.error("%s %s: %s", scope["method"], _route(scope), type(error).__name__, exc_info=_debugging())
        finally:
            self._running -= counted
            self._note(scope, status, time.perf_counter() - start)

    def _check(self, scope: Scope, now: float) -> None:
        headers = dict(scope["headers"])
        client = scope.get("client")
        self._rates.check(client[0] if client else "", now)  # first, so that tokens cannot be tried without end
        self._access.check(scope["method"], scope["path"], headers)
        if self._running > self._limits.concurrent and scope["path"] not in ("/healthz", LOGIN):
            raise Refused(503, "busy", "too many requests at once; ask again in a second", **{"retry-after": "1"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise too_large(self._limits.body_bytes)

    async def _refuse(self, refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.rejected.labels(refused.reason).inc()
        # What is left of its body is not read: the connection ends.
        headers = refused.headers | ({"connection": "close"} if scope["method"] == "POST" else {})
        await problem(refused.status, refused.message, headers)(scope, receive, send)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if access_log.isEnabledFor(logging.INFO):
            client = scope.get("client") or ["-"]
            access_log.info("%s %s %s %d %.0f ms", client[0], scope["method"], route, status, 1000 * seconds)


def too_large(limit: int) -> Refused:
    return Refused(413, "body", f"the body is over {limit} bytes; send less", connection="close")


def _headed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    own = _HEADERS if any(name == b"content-security-policy" for name, _ in headers) else [*_HEADERS, _POLICY]
    return [*headers, *own]


def _route(scope: Scope) -> str:
    """As it was declared: no ids, nothing that was made up."""
    found: Any = scope.get("route")
    return getattr(found, "path", "other")


def _debugging() -> bool:
    return logger.isEnabledFor(logging.DEBUG)
