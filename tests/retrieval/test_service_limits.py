"""What hostile clients send, row by row: it is refused in one line, costs little, and the service goes on."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from cclm.retrieval.service.connections import OF_ONE, Connection
from cclm.retrieval.service.limits import Access, Limits, Rates, Refused
from cclm.retrieval.service.thumbnails import Kept
from tests.retrieval.serving import CLI, Made, command, encoded, make, serving
from tests.retrieval.test_service import error, until

TOKEN = "0123456789abcdef-of-tests"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("limited"))


@pytest.fixture(scope="module")
def client(made: Made) -> Iterator[httpx.Client]:
    with serving(made) as client:
        yield client


@pytest.fixture(scope="module")
def locked(made: Made) -> Iterator[httpx.Client]:
    with serving(made, access=Access(TOKEN)) as client:
        yield client


def test_numbers_beyond_all_bounds(client: httpx.Client) -> None:
    for asked, match in [
        ({"text": "a", "k": 10**9}, "^k: "),
        ({"text": "a", "k": 10**400}, "."),
        ({"text": "a", "k": 0}, "^k: "),
        ({"text": "a", "k": -1}, "^k: "),
        ({"text": "a", "k": "5"}, "^k: "),
        ({"text": "a", "k": 600, "offset": 600}, "offset and k are 1200"),
        ({"text": "a", "rerank": 10**6}, "^rerank: "),
        ({"like": 2**63}, "^like: "),
        ({"like": -1}, "^like: "),
        ({"text": "a" * 2001}, "^text: "),
        ({"text": "a", "where": "x" * 2001}, "^where: "),
        ({"terms": [{"text": "a"}] * 17}, "^terms: "),
        ({"terms": [{"text": "a", "weight": 1e9}]}, "weight"),
        ({"terms": [{"text": "a", "weight": 0.0}]}, "weight"),
        ({"terms": [{"text": "a", "weight": -1.0}]}, "minus"),
        ({"terms": [{"text": "a", "like": 1}]}, "give one of"),
        ({"terms": [{"text": " "}]}, "blank"),
        ({"text": 'a "b'}, "quotation mark"),
        ({"text": "a^0"}, "weight"),
        ({"text": "   "}, "empty"),
        ({}, "^the query is empty; give text, image, like or terms$"),
        ({"like": None}, "^the query is empty; give text"),
        ({"text": "a", "surprise": 1}, "surprise"),
    ]:
        error(client.post("/api/search", json=asked), 422, match)
    for number in (2**63, -1, 10**30, "1e3", "%00"):
        answer = client.get(f"/images/{number}")
        assert answer.status_code in (404, 422) and list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"text": NaN}', b'{"k": 1e999, "text": 5}', b"[" * 500_000,
        b'{"text":' * 100_000, b'{"terms":' + b"[" * 300_000, b'{"text": "\\ud800"}', b'{"text": "a", "text": 1}',
    ],
    ids=range(12),
)  # fmt: skip
def test_bodies_that_are_no_query(client: httpx.Client, content: bytes) -> None:
    for path in ("/api/search", "/knn-service", "/metadata", "/api/login"):
        large = path == "/api/login" and len(content) > 4096
        error(client.post(path, content=content), 413 if large else 422, ".")


@pytest.mark.parametrize(
    "image", ["", "@@@@", "data:image/png;base64,", "data:text/html;base64,PGI+", "QQ==", "A" * 100_001]
)
def test_images_that_are_none(client: httpx.Client, image: str) -> None:
    error(client.post("/api/search", json={"image": image}), 422, "base64|not readable")


def test_a_bomb_of_pixels_and_formats_that_are_not_allowed(client: httpx.Client) -> None:
    bomb = base64.b64encode(png_of(30_000, 30_000)).decode()
    error(client.post("/api/search", json={"image": bomb}), 422, "64 megapixels")
    for kind in ("TIFF", "GIF", "BMP"):
        other = base64.b64encode(encoded(1, kind)).decode()
        error(client.post("/api/search", json={"image": other}), 422, "not readable")


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    lines = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def test_a_body_of_a_gigabyte_is_not_held(made: Made) -> None:
    """One that says so is refused before it is read, one that comes in chunks as soon as it is over."""
    with command(made) as (address, process):
        before = peak_mib(process.pid)
        port = httpx.URL(address).port
        for path in ("/api/search", "/knn-service"):
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {2**30}\r\n\r\n{{"
                connection.sendall(head.encode())
                answer = whole(connection)
            assert b" 413 " in answer and b"over 16777216 bytes" in answer
        sent = flood(port, "POST /api/search", 2**30)
        assert b" 413 " in sent.answer and sent.size < 2**30
        thrown = flood(port, "GET /healthz", 2**28)  # of a route that reads none: thrown away
        assert b" 200 " in thrown.answer
        assert peak_mib(process.pid) - before < 200
        assert httpx.get(f"{address}healthz", trust_env=False).status_code == 200


def whole(connection: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


class Flood:
    def __init__(self, size: int, answer: bytes) -> None:
        self.size, self.answer = size, answer


def flood(port: int, route: str, size: int) -> Flood:
    """Send chunks until there is an answer, or `size` bytes are out."""
    chunk, sent = b"10000\r\n" + b" " * 2**16 + b"\r\n", 0
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"{route} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        try:
            while sent < size:
                connection.sendall(chunk)
                sent += 2**16
            connection.sendall(b"0\r\n\r\n")
        except OSError:  # it was hung up on
            pass
        try:
            return Flood(sent, connection.recv(2000))
        except OSError:
            return Flood(sent, b" 413 " if sent < size else b"")


def peak_mib(process: int) -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


def test_a_body_that_never_comes(made: Made) -> None:
    with serving(made, limits=Limits(seconds=0.5)) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as connection:
            connection.sendall(b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            answer = whole(connection)
            assert b" 408 " in answer and b"did not arrive within 0.5 s" in answer
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "start",
    [
        b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n" + 9 * b"a: b\r\n",
        b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx: ",
    ],
    ids=["address", "header", "headers", "trailer"],
)  # fmt: skip
def test_a_head_without_end(client: httpx.Client, start: bytes) -> None:
    """Uvicorn's parser keeps all of it."""
    sent = 0
    with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as connection:
        connection.sendall(start)
        try:
            while sent < 2**25:
                sent += connection.send(2**13 * b"a" if not start.endswith(b"\n") else 2**11 * b"a:\r\n")
                time.sleep(0.001)
        except OSError:  # it was hung up on
            pass
    assert sent < 2**25
    with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as connection:
        connection.sendall(b"GET /" + 33_000 * b"a")
        assert whole(connection).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_never_comes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 0.3)
    with serving(made) as client, socket.create_connection(("127.0.0.1", client.base_url.port), 30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: ")
        assert b" 408 " in whole(connection)
        with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as silent:
            assert b" 408 " in whole(silent)
        with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as second:  # kept for another request
            second.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b" 200 " in second.recv(5000)
            second.sendall(b"GET /hea")
            assert b" 408 " in whole(second)
        with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as unread:  # nobody reads its body
            unread.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\na")
            assert b" 200 " in whole(unread)


def test_connections_of_one_client(made: Made) -> None:
    with serving(made) as client:
        port = client.base_url.port
        held = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(OF_ONE)]
        for connection in held:
            connection.sendall(b"GET / HTTP/1.1\r\nhost")
        with socket.create_connection(("127.0.0.1", port), 30) as further:
            assert b" 503 " in whole(further)
        with socket.create_connection(("127.0.0.1", port), 30, ("127.0.0.2", 0)) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b" 200 " in other.recv(5000)
        for connection in held:
            connection.close()
        until(lambda: reachable_again(client))


def reachable_again(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_who_leaves_is_not_answered(made: Made) -> None:
    body = json.dumps({"text": "a", "k": 5}).encode()
    with serving(made) as client:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as connection:
                connection.sendall(b"POST /api/search HTTP/1.1\r\nhost: localhost\r\n")
                connection.sendall(f"content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: "running 1.0" in client.get("/metrics").text)
        assert client.post("/api/search", json={"text": "a"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/images/../../etc/passwd", "/images/..%2f..%2fetc%2fpasswd", "/images/%2e%2e/1", "/..//etc/passwd",
        "/thumbnails/1/../../x", "/static/x", "/docs", "/redoc", "//evil/", "/images/", "/images/1/", "/%00",
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(client: httpx.Client, path: str) -> None:
    with socket.create_connection(("127.0.0.1", client.base_url.port), 30) as connection:  # httpx would tidy them up
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = whole(connection)
    assert re.match(rb"HTTP/1.1 (404|422|400) ", answer) and b'{"error":' in answer


def test_other_names_for_this_machine(made: Made) -> None:
    """A page whose name was made to lead here (DNS rebinding) still asks under its own name."""
    with command(made) as (address, _), httpx.Client(trust_env=False) as client:
        port = httpx.URL(address).port
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "localhost.evil",
            "",
            "[",
            "0.0.0.0",
        ):
            answer = client.get(f"{address}api/index", headers={"host": host})
            assert answer.status_code in (400, 421), host
        for host in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert client.get(f"{address}api/index", headers={"host": host}).status_code == 200, host


def test_pages_of_other_origins(client: httpx.Client, made: Made) -> None:
    own = f"http://{client.base_url.netloc.decode()}"
    assert client.post("/api/search", json={"text": "a"}, headers={"origin": own}).status_code == 200
    for origin in ("https://evil.example", "null", own + ".evil.example", "http://localhost:1"):
        error(client.post("/api/search", json={"text": "a"}, headers={"origin": origin}), 403, "other origins")
        assert client.options("/api/search", headers=preflight(origin)).status_code == 403
    answer = client.get("/images/1")
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]
    with serving(made, access=Access(TOKEN, origins=frozenset({"https://friend.example"}))) as friendly:
        allowed = friendly.options("/api/search", headers=preflight("https://friend.example"))
        assert allowed.headers["access-control-allow-origin"] == "https://friend.example"
        headers = {"origin": "https://friend.example", "authorization": f"Bearer {TOKEN}"}
        answer = friendly.post("/api/search", json={"text": "a"}, headers=headers)
        assert answer.status_code == 200 and "access-control-allow-credentials" not in answer.headers
        assert friendly.post("/api/search", json={"text": "a"}, headers=headers | preflight("null")).status_code == 403


def preflight(origin: str) -> dict[str, str]:
    return {"origin": origin, "access-control-request-method": "POST"}


def test_without_the_token(locked: httpx.Client) -> None:
    paths = ["/api/index", "/images/1", "/thumbnails/1", "/metrics", "/openapi.json", "/indices-list", "/none"]
    for path in [*paths, "/api/explain?id=1&text=a"]:
        answer = locked.get(path)
        error(answer, 401, "token is needed")
        assert answer.headers["www-authenticate"] == "Bearer"
    for given in (
        "",
        "Bearer",
        "Bearer x",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer \xff",
        f"Bearer {TOKEN[:-1]}",
    ):
        headers = {"authorization": given.encode("latin-1")}
        error(locked.post("/knn-service", json={"text": "a"}, headers=headers), 401, "token is needed")
    for cookie in (f"cclm={TOKEN}", "cclm=", "cclm", "=;=;", "cclm=\xff", "x" * 5000):
        error(locked.get("/images/1", headers={"cookie": cookie.encode("latin-1")}), 401, "token is needed")
    for path in ("/", "/healthz"):
        assert locked.get(path).status_code == 200


def test_with_the_token(locked: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert locked.post("/api/search", json={"text": "a"}, headers=headers).status_code == 200
    error(locked.post("/api/login", json={"token": "no"}), 401, "not the token")
    login = locked.post("/api/login", json={"token": TOKEN})
    assert login.status_code == 204 and TOKEN not in str(login.headers)
    cookie = login.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert locked.get("/images/1").status_code == 200  # the client keeps cookies, as browsers do
    own = login.headers["set-cookie"].split(";")[0]
    assert own.startswith(f"cclm-{locked.base_url.port}=")  # ports share cookies
    locked.cookies.clear()
    for others in (f'a b[]="x; {own}', f"={{}}; x=\xe9; {own}; y", f"{own.split('=')[0]}=old; {own}"):
        headers = {"cookie": others.encode("latin-1")}
        assert locked.get("/images/1", headers=headers).status_code == 200, others
    locked.cookies.clear()


def test_tokens_that_are_too_short() -> None:
    for token in ("", "short", "ж" * 20, "x" * 15 + "\n"):
        with pytest.raises(ValueError, match="16 or more"):
            Access(token)


def test_a_token_makes_another_host_possible(made: Made) -> None:
    with command(made, "--host", "0.0.0.0", token=TOKEN) as (address, process):
        port = httpx.URL(address).port
        assert httpx.get(f"http://127.0.0.1:{port}/api/index", trust_env=False).status_code == 401
        headers = {"authorization": f"Bearer {TOKEN}", "host": "pictures.example"}
        assert httpx.get(f"http://127.0.0.1:{port}/api/index", headers=headers, trust_env=False).status_code == 200


def test_too_many_requests(made: Made) -> None:
    with serving(made, limits=Limits(requests_per_s=0.5)) as client:  # five at once
        answers = [client.get("/healthz") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) >= 1
        error(answers[-1], 429, "too many requests")


def test_wrong_tokens_too_are_counted(made: Made) -> None:
    with serving(made, limits=Limits(requests_per_s=0.5), access=Access(TOKEN)) as client:
        tried = [client.get("/api/index", headers={"authorization": f"Bearer {n}"}).status_code for n in range(6)]
    assert tried == [401] * 5 + [429]


def test_rates_are_of_one_client_each_and_fill_up_again() -> None:
    rates = Rates(1.0)

    def allowed(client: str, now: float) -> bool:
        try:
            rates.check(client, now)
        except Refused as refused:
            assert refused.status == 429
            return False
        return True

    assert [allowed("a", 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert allowed("b", 0.0) and not allowed("a", 0.5) and allowed("a", 2.0)
    assert [allowed(f"2001:db8::{number}", 0.0) for number in range(1, 12)] == [True] * 10 + [False]  # one network
    for number in range(30_000):
        rates.check(f"c{number}", 3.0)
    assert len(rates._buckets) == 10_000


def test_too_many_at_once(made: Made) -> None:
    with serving(made, limits=Limits(concurrent=2, seconds=20)) as client:
        held = [socket.create_connection(("127.0.0.1", client.base_url.port), 30) for _ in range(2)]
        for connection in held:
            connection.sendall(b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n")
        until(lambda: client.get("/metrics").status_code == 503)
        answer = client.post("/api/search", json={"text": "a"})
        error(answer, 503, "too many requests at once")
        assert answer.headers["retry-after"] and client.get("/healthz").status_code == 200
        slow = [socket.create_connection(("127.0.0.1", client.base_url.port), 30) for _ in range(3)]
        for connection in slow:  # logins take nobody's place
            connection.sendall(b"POST /api/login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n")
        for connection in held:
            connection.close()
        until(lambda: client.post("/api/search", json={"text": "a"}).status_code == 200)
        assert client.get("/metrics").status_code == 200
        for connection in slow:
            connection.close()


def test_nothing_is_fetched(made: Made) -> None:
    """Neither a URL in a query nor one that leads on; a server counts who comes."""
    asked: list[str] = []

    class Counting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("location", "http://127.0.0.1/secret")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/picture.jpg"
        with serving(made) as client:
            error(client.post("/knn-service", json={"image_url": url}), 400, "never fetches")
            error(
                client.post("/knn-service", json={"text": "a", "image_url": "file:///etc/passwd"}), 400, "never fetches"
            )
            for path in ("/knn-service", "/api/search"):
                error(client.post(path, json={"image": url}), 422, "base64")
            assert client.post("/api/search", json={"text": url}).status_code == 200  # a text like any other
        httpx.get(url, trust_env=False)
        server.shutdown()
    assert asked == ["/picture.jpg"]  # by us, to see that it counts


def test_what_people_ask_for_is_not_logged(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), serving(made) as client:
        client.post("/api/search", json={"text": "topsecret"})
        client.post("/api/search", json={"text": 'topsecret "'})
        client.get("/api/explain", params={"id": 1, "text": "topsecret"})
        client.get("/topsecret")
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert any("/api/search 200" in line for line in logged) and not any("topsecret" in line for line in logged)


def test_thumbnails_are_kept_within_bounds() -> None:
    kept = Kept(100)
    for number in range(20):
        kept.put(str(number), bytes(30))
        kept.get("0")
    assert [number for number in range(20) if kept.get(str(number))] == [0, 18, 19]
    kept.put("large", bytes(101))
    assert kept.get("large") is None and kept.get("0") is None
    kept.put("again", bytes(50))
    kept.put("again", bytes(60))
    kept.put("more", bytes(40))
    assert kept.get("again") and kept.get("more")


def test_no_request_that_the_description_allows_breaks_the_service(client: httpx.Client) -> None:
    """Hundreds of requests, made from the service's own description: no server error, nothing undescribed."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis (cclm[dev])")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    checks = [schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance]
    seen: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def conforms(case: object) -> None:
            answer = case.call(base_url=str(client.base_url))
            seen.setdefault(case.operation.label, set()).add(answer.status_code)
            case.validate_response(answer, checks=[*checks, response_schema_conformance])

        conforms()
    assert len(seen) >= 11 and 200 in seen["POST /api/search"] | seen["GET /api/index"]


def test_without_the_extra_it_says_what_to_install(made: Made) -> None:
    program = "import sys; sys.modules['uvicorn'] = None; " + CLI
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", str(made.index)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "cclm: serve needs uvicorn, which is not installed: pip install 'cclm[serve]'"
    ]


def test_all_at_once_and_mixed(client: httpx.Client) -> None:
    """Good and bad requests of all kinds beside each other."""
    image = base64.b64encode(encoded(5)).decode()
    asked = [
        ("/api/search", {"text": "a", "k": 7}, 200),
        ("/api/search", {"image": image, "k": 3}, 200),
        ("/api/search", {"text": "a", "rerank": 5}, 200),
        ("/api/search", {"text": "a", "where": "width > 1"}, 200),
        ("/api/search", {"text": "a", "where": "1"}, 422),
        ("/api/search", {"image": "no"}, 422),
        ("/knn-service", {"text": "a", "num_images": 3}, 200),
        ("/metadata", {"ids": [1], "indice_name": "none"}, 404),
    ]
    with ThreadPoolExecutor(24) as pool:
        for _, expected, status in pool.map(
            lambda one: (one, one[2], client.post(one[0], json=one[1]).status_code), asked * 8
        ):
            assert status == expected
