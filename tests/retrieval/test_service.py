"""The service as its clients see it: a real server over a tiny index."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from cclm.models.model import CCLMModel
from cclm.retrieval.index import build_index
from cclm.retrieval.manifest import IndexManifest, ModelSource
from cclm.retrieval.metadata import Rows
from cclm.retrieval.query import IndexedTerm, Query, TextTerm
from tests.retrieval.serving import CLI, HOSTILE, PICTURES, Made, command, encoded, make, serving

GONE = PICTURES + 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(made: Made) -> Iterator[httpx.Client]:
    with serving(made) as client:
        yield client


@pytest.fixture
def own(made: Made, tmp_path: Path) -> Made:
    """A copy, to be changed."""
    shutil.copytree(made.folder, tmp_path / "own")
    return replace(made, folder=tmp_path / "own")


def ids(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def error(answer: httpx.Response, status: int, match: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json" and list(answer.json()) == ["error"]
    assert re.search(match, answer.json()["error"]) and "\n" not in answer.json()["error"]


def test_hits_are_those_of_the_searcher(client: httpx.Client, made: Made) -> None:
    answer = client.post("/api/search", json={"text": "picture 7 -red", "k": 5}).json()
    hits = made.searcher().search([Query.parse("picture 7 -red")], 5)[0]
    assert [(hit["id"], hit["key"]) for hit in answer["hits"]] == [(hit.id, hit.entry.key) for hit in hits]
    assert np.allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in hits], atol=1e-5)
    first, entry = answer["hits"][0], hits[0].entry
    assert (first["path"], first["size"]) == (entry.path, entry.size)
    assert first["captions"] == entry.captions and (first["width"], first["height"]) == (400, 300)
    assert first["date"] == entry.date.isoformat() and first["match"] is None
    assert answer["version"] == 1 and answer["took_ms"] > 0


def test_pages_of_hits(client: httpx.Client) -> None:
    whole = ids(client.post("/api/search", json={"text": "a", "k": 12}))
    pages = [ids(client.post("/api/search", json={"text": "a", "k": 4, "offset": start})) for start in (0, 4, 8)]
    assert sum(pages, []) == whole and len(set(whole)) == 12
    assert len(ids(client.post("/api/search", json={"text": "a", "k": 1000}))) == PICTURES
    assert ids(client.post("/api/search", json={"text": "a", "offset": PICTURES})) == []


def test_by_picture_by_likeness_and_by_terms(client: httpx.Client, made: Made) -> None:
    data = base64.b64encode(encoded(5, "PNG")).decode()
    by_image = client.post("/api/search", json={"image": data, "k": 1}).json()["hits"][0]
    assert by_image["id"] == 5 and by_image["score"] > 0.99
    assert ids(client.post("/api/search", json={"image": f"data:image/png;base64,{data}", "k": 1})) == [5]
    assert ids(client.post("/api/search", json={"like": 9, "k": 1})) == [9]
    together = {"terms": [{"like": 9, "weight": 2.0}, {"text": "dog", "weight": -0.5}], "k": 5}
    query = Query((IndexedTerm(9, 2.0), TextTerm("dog", -0.5)))
    assert ids(client.post("/api/search", json=together)) == [hit.id for hit in made.searcher().search([query], 5)[0]]
    both = {"text": "dog", "image": data, "k": 3}
    assert len(ids(client.post("/api/search", json=both))) == 3


def test_filters_and_reranking(client: httpx.Client) -> None:
    german = ids(client.post("/api/search", json={"text": "a", "k": 1000, "where": "lang = 'de'"}))
    assert sorted(german) == list(range(1, PICTURES, 2))
    error(client.post("/api/search", json={"text": "a", "where": "rm -rf /"}), 422, ".")
    error(client.post("/api/search", json={"text": "a", "where": "nothing = 1"}), 422, "nothing")
    hits = client.post("/api/search", json={"text": "a", "k": 6, "rerank": 4}).json()["hits"]
    matches = [hit["match"] for hit in hits[:4]]
    assert matches == sorted(matches, reverse=True) and hits[4]["match"] is None


def test_reranking_holds_up_nobody_and_ends_where_the_client_left(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    begun, go_on, score = threading.Event(), threading.Event(), CCLMModel.score

    def held(self: CCLMModel, images: list[Image.Image], texts: list[str], **options: object) -> np.ndarray:
        judged.append(len(images))
        begun.set()
        assert go_on.wait(60)
        return score(self, images, texts, **options)

    monkeypatch.setattr(CCLMModel, "score", held)
    whole = {"text": "a", "k": PICTURES, "rerank": PICTURES}
    body = json.dumps(whole).encode()
    with serving(made) as client:
        plain = ids(client.post("/api/search", json={"text": "a", "k": 5}))  # the text is remembered from now on
        with socket.create_connection(("127.0.0.1", client.base_url.port), 60) as leaving:
            leaving.sendall(b"POST /api/search HTTP/1.1\r\nhost: localhost\r\n")
            leaving.sendall(f"content-length: {len(body)}\r\n\r\n".encode() + body)
            assert begun.wait(60)
            assert ids(client.post("/api/search", json={"text": "a", "k": 5})) == plain
        until(lambda: "running 1.0" in client.get("/metrics").text)
        go_on.set()
        until(lambda: "queued 0.0" in client.get("/metrics").text)
        found = client.post("/api/search", json=whole).json()["hits"]
    assert judged == [16, 16, 16, 8]  # the first is of who left
    assert None not in {hit["match"] for hit in found} and len(found) == PICTURES


def test_what_is_told_of_the_index(client: httpx.Client) -> None:
    told = client.get("/api/index").json()
    assert (told["name"], told["rows"], told["version"], told["model"]) == ("index", PICTURES, 1, "tiny")
    assert told["languages"] == ["en", "de"] and told["rerank"] and told["explain"]
    assert {"lang", "width", "date", "path"} <= {field["name"] for field in told["fields"]}


def test_pictures_and_thumbnails(client: httpx.Client, made: Made) -> None:
    for number in (0, PICTURES - 1):  # a file, and a member of a tar
        whole = client.get(f"/images/{number}")
        assert whole.content == encoded(number) and whole.headers["content-type"] == "image/jpeg"
        assert whole.headers["etag"] == f'"{sha256(whole.content).hexdigest()}"'
        small = client.get(f"/thumbnails/{number}")
        image = Image.open(io.BytesIO(small.content))
        assert image.format == "WEBP" and image.size == (256, 192) and small.headers["etag"] != whole.headers["etag"]
        for answer in (whole, small):
            again = client.get(answer.request.url, headers={"if-none-match": answer.headers["etag"]})
            assert again.status_code == 304 and not again.content
            assert (
                "private" in answer.headers["cache-control"] and answer.headers["x-content-type-options"] == "nosniff"
            )
    hit = client.post("/api/search", json={"like": 3, "k": 1}).json()["hits"][0]
    for path in (hit["thumbnail"], hit["image"]):  # only an address that names the content lasts
        assert "max-age=86400" in client.get(path).headers["cache-control"]
        for other in (path.split("?")[0], path[:-1] + "-"):
            assert "no-cache" in client.get(other).headers["cache-control"]
    for number in (GONE, 2**63 - 1):
        error(client.get(f"/images/{number}"), 404, f"no picture of id {number}")
        error(client.get(f"/thumbnails/{number}"), 404, f"no picture of id {number}")
    error(client.post("/api/search", json={"like": GONE}), 404, "no picture")


def test_pictures_that_are_no_more_there(own: Made) -> None:
    (own.pictures / "a" / "1.jpg").unlink()
    (own.pictures / "a" / "2.jpg").write_text("<script>")
    (own.pictures / "a" / "3.jpg").write_bytes(encoded(3)[:500])
    with serving(own) as client:
        for path, match in (("images/1", "missing"), ("images/2", "no jpeg"), ("thumbnails/3", "another one")):
            error(client.get(path), 404, match)
        hits = client.post("/api/search", json={"text": "a", "k": PICTURES, "rerank": PICTURES}).json()["hits"]
        assert {hit["id"] for hit in hits if hit["match"] is None} == {1, 2, 3}


def test_explanations(client: httpx.Client) -> None:
    told = client.get("/api/explain", params={"id": 4, "text": "picture 4"}).json()
    heat = np.array(told["heat"])
    assert heat.shape == (len(told["tokens"]), *np.array(told["overall"]).shape) and 0 <= heat.min() <= heat.max() <= 1
    error(client.get("/api/explain", params={"id": GONE, "text": "a"}), 404, "no picture")
    error(client.get("/api/explain", params={"id": 4, "text": " "}), 422, "blank|says nothing|no word")
    error(client.get("/api/explain", params={"id": 4}), 422, "text")


def test_captions_come_as_json_and_never_as_markup(client: httpx.Client) -> None:
    answer = client.post("/api/search", json={"like": 3, "k": 1})
    assert answer.json()["hits"][0]["captions"]["en"] == [HOSTILE]
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert "sandbox" in answer.headers["content-security-policy"]
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for kind in ("script", "style"):
        for content in re.findall(rf"<{kind}>(.*?)</{kind}>", page.text, re.DOTALL):
            digest = base64.b64encode(sha256(content.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy


class ClipClient:
    """What clip-retrieval's client sends, and how: without a content type."""

    def __init__(self, client: httpx.Client, name: str, images: int = 40) -> None:
        self._client, self._name, self._images = client, name, images

    def query(self, **asked: object) -> list[dict[str, object]]:
        fields = {
            "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": True,
            "use_safety_model": True, "use_violence_detector": True, "indice_name": self._name, "use_mclip": False,
            "aesthetic_score": 9, "aesthetic_weight": 0.5, "modality": "image", "num_images": self._images,
            "num_result_ids": self._images, "verbose": False,
        }  # fmt: skip
        self.answer = self._client.post("/knn-service", content=json.dumps(fields | asked))
        assert "content-type" not in self.answer.request.headers
        return self.answer.json()


def test_clip_retrievals_client(client: httpx.Client, made: Made) -> None:
    assert client.get("/indices-list").json() == ["index"]
    clip = ClipClient(client, "index")
    found = clip.query(text="picture 7", deduplicate=False)
    hits = made.searcher().search([Query.of("picture 7")], 40)[0]
    assert [hit["id"] for hit in found] == [hit.id for hit in hits]
    assert found[0]["caption"] == hits[0].entry.caption() and found[0]["key"] == hits[0].entry.key
    assert client.get(found[0]["url"]).content == encoded(hits[0].id)
    assert len(clip.query(text="picture 7", num_result_ids=3000, deduplicate=None)) == PICTURES  # cut, as they all ask
    image = clip.query(image=base64.b64encode(encoded(5)).decode())
    assert image[0]["id"] == 5
    vector = (3 * made.vectors[6]).tolist()
    assert clip.query(embedding_input=vector)[0]["id"] == 6
    few = clip.query(embedding_input=vector, num_images=2, num_result_ids=6, deduplicate=False)
    assert [("caption" in hit) for hit in few] == [True, True, False, False, False, False]
    told = client.post("/metadata", json={"ids": [6, 3], "indice_name": "index"}).json()
    more = client.post("/metadata", json={"ids": [6, GONE, 3]}).json()  # without those that are not there
    assert told == more and [one["id"] for one in told] == [6, 3] and told[1]["metadata"]["caption"] == HOSTILE


def test_another_index_in_the_same_place_shows_its_own_pictures(own: Made, tmp_path: Path) -> None:
    """Ids start at 0 in each."""
    with serving(own) as client:
        before = client.get("/thumbnails/3").content
        reversed_entries = list(reversed(own.entries))
        model = ModelSource.of(own.model)
        own.index.rename(tmp_path / "former")
        build_index([Rows.of(reversed_entries, own.vectors)], tmp_path / "other", model, [own.pictures], "another")
        shutil.move(tmp_path / "other", own.index)
        until(lambda: client.get("/api/index").json()["data"] == "another")
        assert client.get("/thumbnails/3").content != before
        assert client.get(f"/thumbnails/{PICTURES - 4}").content == before


def test_who_only_asks_whether_it_is_there(client: httpx.Client) -> None:
    for path in ("/", "/healthz"):
        answer = client.head(path)
        assert answer.status_code == 200 and not answer.content


def test_clip_retrievals_client_without_doubles(own: Made) -> None:
    doubled = np.concatenate([own.vectors, own.vectors[:1]])
    entries = [*own.entries, replace(own.entries[0], key="again")]
    build_index([Rows.of(entries, doubled)], own.index, ModelSource.of(own.model), [own.pictures])
    with serving(own) as client:
        clip = ClipClient(client, "index", 41)
        vector = own.vectors[0].tolist()
        first = clip.query(embedding_input=vector, deduplicate=False)
        assert first[0]["similarity"] == pytest.approx(first[1]["similarity"])
        kept = clip.query(embedding_input=vector)
        known = {hit["id"]: doubled[hit["id"] - PICTURES] for hit in kept}  # a build anew gives new ids
        alike = np.stack(list(known.values())) @ np.stack(list(known.values())).T
        assert kept[0]["id"] == first[0]["id"] and len(kept) < len(first)
        assert (alike - np.eye(len(kept))).max() <= 0.94


def test_what_clip_retrieval_does_and_this_service_does_not(client: httpx.Client) -> None:
    clip = ClipClient(client, "index")
    for asked, status, match in [
        ({"text": "a", "modality": "text"}, 400, "modality"),
        ({"text": "a", "indice_name": "laion5B"}, 404, "'index'"),
        ({}, 422, "nothing to search with"),
        ({"embedding_input": [1.0, 2.0]}, 422, "2 numbers"),
        ({"embedding_input": [0.0] * 8}, 422, "not all 0"),
        ({"embedding_input": [1e308] * 8}, 422, "finite"),
        ({"text": "a", "num_images": -1}, 422, "num_images"),
        ({"image": "@@@"}, 422, "base64"),
    ]:
        clip.query(**asked)
        error(clip.answer, status, match)


def test_one_wrong_query_spoils_no_others(client: httpx.Client, made: Made) -> None:
    """Asked at once, so that they share batches."""
    asked = [{"text": f"picture {number}", "k": 1 + number % 7} for number in range(60)]
    asked[10::20] = [{"terms": [{"text": "\u200b \u200b"}]}, {"text": "a", "where": "no"}, {"text": "a", "k": 0}]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda body: client.post("/api/search", json=body), asked))
    searcher = made.searcher()
    for body, answer in zip(asked, answers, strict=True):
        if "terms" in body or "where" in body or not body["k"]:
            assert answer.status_code in (200, 422) and answer.status_code != 500
        else:
            assert ids(answer) == [hit.id for hit in searcher.search([Query.parse(body["text"])], body["k"])[0]]
    assert [answers[place].status_code for place in (30, 50)] == [422, 422]
    told = client.get("/metrics").text
    counted = float(re.search(r"cclm_batch_queries_count (\S+)", told)[1])
    assert counted < float(re.search(r"cclm_batch_queries_sum (\S+)", told)[1])


def test_metrics(made: Made) -> None:
    with serving(made) as client:
        client.post("/api/search", json={"text": "a secret text"})
        client.get("/images/1")
        client.get(f"/images/{GONE}")
        client.get("/nothing")
        told = client.get("/metrics").text
    for line in (
        'cclm_requests_total{route="/api/search",status="200"} 1.0',
        'cclm_requests_total{route="/images/{id}",status="404"} 1.0',
        'cclm_requests_total{route="other",status="404"} 1.0',
        'cclm_request_seconds_count{route="/api/search"} 1.0',
        'cclm_requests_rejected_total{reason="id"} 1.0',
        "cclm_batch_queries_sum 1.0",
        "cclm_index_version 1.0",
        f"cclm_index_rows {PICTURES}.0",
        "cclm_queries_queued 0.0",
    ):
        assert f"\n{line}\n" in told, told
    assert "secret" not in told


def appended(made: Made, text: str) -> None:
    """Another version: the same pictures, other captions."""
    entries = [replace(entry, captions={"en": [text]}) for entry in made.entries]
    build_index([Rows.of(entries, made.vectors)], made.index, ModelSource.of(made.model), [made.pictures])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass within a minute")


def test_new_versions_are_swapped_in_under_load_without_an_error(own: Made) -> None:
    with serving(own) as client, ThreadPoolExecutor(8) as pool:
        ended = threading.Event()

        def asking(number: int) -> set[tuple[int, str]]:
            seen = set()
            while not ended.is_set():
                answer = client.post("/api/search", json={"text": f"picture {number}", "k": 3})
                assert answer.status_code == 200, answer.text
                told = answer.json()
                seen.update((told["version"], hit["captions"]["en"][0][:4]) for hit in told["hits"])
            return seen

        running = [pool.submit(asking, number) for number in range(8)]
        for version in range(2, 6):
            appended(own, f"v{version} of it")
            until(lambda version=version: client.get("/api/index").json()["version"] == version)
        ended.set()
        seen = set().union(*(one.result() for one in running))
        assert {version for version, _ in seen} >= {2, 3, 4, 5}
        assert all(text.startswith(f"v{version}") for version, text in seen if version > 1)
        assert 'cclm_index_reloads_total{outcome="swapped"} 4.0' in client.get("/metrics").text


def test_a_broken_new_version_leaves_the_old_one(own: Made, caplog: pytest.LogCaptureFixture) -> None:
    with serving(own) as client:
        manifest = IndexManifest.read(own.index)
        segment = replace(manifest.segments[0], files=manifest.segments[0].files | {"image.index": "0" * 64})
        replace(manifest, version=2, segments=[replace(segment, name=_copied(own, segment.name))]).write(own.index)
        until(lambda: 'outcome="failed"} 1.0' in client.get("/metrics").text)
        assert client.get("/api/index").json()["version"] == 1
        assert len(ids(client.post("/api/search", json={"text": "a", "k": 5}))) == 5
        assert "is not used" in caplog.text and "image.index was changed" in caplog.text
        replace(manifest, version=3, model_sha256="0" * 64).write(own.index)
        until(lambda: 'outcome="failed"} 2.0' in client.get("/metrics").text)
        appended(own, "mended")
        until(lambda: client.get("/api/index").json()["version"] == 4)


def _copied(made: Made, segment: str) -> str:
    shutil.copytree(made.index / "segments" / segment, made.index / "segments" / "other")
    return "other"


def test_the_command_tells_its_address_and_ends_when_all_are_answered(made: Made) -> None:
    body = json.dumps({"text": "a", "k": 3}).encode()
    head = f"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with command(made) as (address, process):
        port = httpx.URL(address).port
        assert httpx.get(f"{address}healthz", trust_env=False).json() == {"status": "ok"}
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(head + body[:5])
            until(lambda: "running 2.0" in httpx.get(f"{address}metrics", trust_env=False).text)  # and this one
            process.send_signal(signal.SIGTERM)
            until(lambda: not reachable(port))
            connection.sendall(body[5:])
            assert b" 200 OK" in connection.recv(1000)
        assert process.wait(60) == 128 + signal.SIGTERM  # as main ends on it
        assert "Traceback" not in process.stderr.read()


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "can be asked by others; give a token"),
        (["--port", "70000"], "port is 70000"),
        (["--token_file", "/none"], "cannot be read"),
        (["--concurrent", "0"], "concurrent"),
        (["--threads", "999999"], "threads is 999999; give 1 to"),
        (["--batch", "0"], "batch is 0"),
        (["--images", "/nonexist"], "--images /nonexist is no folder"),
        (["--model", "."], "do not belong together|no model"),
    ],
)
def test_what_is_refused_at_the_start(made: Made, options: list[str], told: str) -> None:
    refused(made, options, told)


def test_a_port_in_use(made: Made, client: httpx.Client) -> None:
    refused(made, ["--port", str(client.base_url.port)], f"port {client.base_url.port} of 127.0.0.1 is in use")


def refused(made: Made, options: list[str], told: str) -> None:
    arguments = [sys.executable, "-c", CLI, "serve", str(made.index), *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and re.search(told, done.stderr), done.stderr
