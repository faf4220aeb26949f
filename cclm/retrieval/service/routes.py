"""The routes of the page: search, what is known of the index, pictures, explanations (`app` tells their shapes)."""

from __future__ import annotations

import base64
import re
import time
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response

from cclm.retrieval import query as queries
from cclm.retrieval.filters import COLUMNS
from cclm.retrieval.metadata import Entry
from cclm.retrieval.pictures import Pictures, media_type
from cclm.retrieval.service import schemas
from cclm.retrieval.service.limits import LOGIN_BYTES, LOGIN_SECONDS, Refused, cookie_name
from cclm.retrieval.service.reading import answer_of, body, decoded, entry_of, in_pool, received, served, told
from cclm.retrieval.service.state import languages
from cclm.retrieval.service.thumbnails import thumbnail

router = APIRouter()
Number = Annotated[int, Path(ge=0, le=schemas.ID)]
_INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL)


@router.post("/api/search", responses={200: {"model": schemas.SearchTold}}, openapi_extra=body("SearchAsked"))
async def search(request: Request) -> Response:
    """Pictures by text in any language, by picture, by likeness, or by all of them together."""
    start = time.perf_counter()
    service, asked = served(request), await received(request, schemas.SearchAsked)
    wanted = asked.offset + asked.k
    if wanted > schemas.MOST_HITS:
        raise Refused(422, "invalid", f"offset and k are {wanted} together; ask for at most {schemas.MOST_HITS}")
    if asked.rerank and not service.judging:
        raise Refused(422, "invalid", "nothing to rerank with: no matching head, or no folder of pictures; rerank 0")
    sent = [image for image in (asked.image, *(term.image for term in asked.terms)) if image is not None]
    async with decoded(request, sent) as images:
        query = _query(asked, images)
        for term in query.terms:
            if isinstance(term, queries.IndexedTerm):
                entry_of(service.searcher.index, term.id)
        found = await answer_of(request, service.batcher.search(query, wanted, asked.where or None, asked.rerank))
    return told(
        {
            "hits": [schemas.hit_told(hit) for hit in found.hits[asked.offset :]],
            "took_ms": round(1000 * (time.perf_counter() - start), 2),
            "version": found.index.manifest.version,
        }
    )


def _query(asked: schemas.SearchAsked, images: list[Any]) -> queries.Query:
    """Errors: Refused, ValueError."""
    decoded_images, also = iter(images), []
    if asked.image is not None:
        also.append(queries.ImageTerm(next(decoded_images)))
    if asked.like is not None:
        also.append(queries.IndexedTerm(asked.like))
    for place, term in enumerate(asked.terms):
        if sum(given is not None for given in (term.text, term.image, term.like)) != 1:
            raise Refused(422, "invalid", f"terms.{place}: give one of text, image and like")
        if term.image is not None:
            also.append(queries.ImageTerm(next(decoded_images), term.weight))
        elif term.like is not None:
            also.append(queries.IndexedTerm(term.like, term.weight))
        elif not (term.text or "").strip():
            raise Refused(422, "invalid", f"terms.{place}: the text is blank; leave it out")
        else:
            also.append(queries.TextTerm(term.text or "", term.weight))
    if not also and not (asked.text or "").strip():
        raise Refused(422, "invalid", "the query is empty; give text, image, like or terms")
    try:
        return queries.Query.parse(asked.text or "", also)
    except ValueError as error:
        raise Refused(422, "invalid", " ".join(str(error).split())) from None


@router.get("/api/index", responses={200: {"model": schemas.IndexTold}})
async def index(request: Request) -> Response:
    """What is searched, and with what."""
    service = served(request)
    index = service.searcher.index
    known = await in_pool(request, languages, index)
    return told(
        {
            "name": service.name,
            "rows": len(index),
            "version": index.manifest.version,
            "model": service.model,
            "data": index.manifest.data,
            "languages": known,
            "fields": [{"name": name, "type": what} for name, what in COLUMNS.items()],
            "rerank": service.judging,
            "explain": service.judging,
            "most_hits": schemas.MOST_HITS,
            "most_reranked": schemas.MOST_RERANKED,
            "most_characters": queries.MAX_CHARACTERS,
        }
    )


@router.get("/api/explain", responses={200: {"model": schemas.ExplanationTold}})
async def explain(
    request: Request, id: Annotated[int, Query(ge=0, le=schemas.ID)], text: Annotated[schemas.Text, Query(min_length=1)]
) -> Response:
    """Where in a picture the model finds the words of a text."""
    service = served(request)
    if not service.judging:
        raise Refused(422, "invalid", "nothing to explain with: no matching head, or no folder of pictures")
    searcher = service.searcher
    entry_of(searcher.index, id)
    found = await in_pool(request, searcher.explain, text, id)
    return told(
        {
            "tokens": list(found.tokens),
            "heat": np.round(found.heat, 4).tolist(),
            "shares": np.round(found.shares, 4).tolist(),
            "overall": np.round(found.overall, 4).tolist(),
            "match": float(found.match),
        }
    )


@router.get("/images/{id}", responses={200: {"content": {"image/*": {}}}}, response_class=Response)
async def image(request: Request, id: Number) -> Response:
    """The picture as it is on the disk, or in its tar."""
    searcher = served(request).searcher
    entry = entry_of(searcher.index, id)
    if known := _known(request, entry, ""):
        return known
    data = await in_pool(request, searcher.pictures.read, entry)
    return Response(data, headers=_kept(request, entry, ""), media_type=media_type(data))


@router.get("/thumbnails/{id}", responses={200: {"content": {"image/webp": {}}}}, response_class=Response)
async def small(request: Request, id: Number) -> Response:
    """The picture as a webp of at most 256 pixels a side."""
    service = served(request)
    searcher = service.searcher
    entry = entry_of(searcher.index, id)
    if known := _known(request, entry, "-256"):
        return known
    data = service.thumbnails.get(entry.sha256) if entry.sha256 else None  # an id may be of another index by now
    if data is None:
        data = await in_pool(request, _thumbnail, searcher.pictures, entry)
        if entry.sha256:
            service.thumbnails.put(entry.sha256, data)
    return Response(data, headers=_kept(request, entry, "-256"), media_type="image/webp")


def _thumbnail(pictures: Pictures, entry: Entry) -> bytes:
    return thumbnail(pictures.read(entry))


def _kept(request: Request, entry: Entry, kind: str) -> dict[str, str]:
    """A browser need not ask again for a while where the address names the content; the index may be another one."""
    lasting = entry.sha256 and request.query_params.get("v") == schemas.version_of(entry)
    tag = {"etag": f'"{entry.sha256}{kind}"'} if entry.sha256 else {}
    return {"cache-control": f"private, {'max-age=86400' if lasting else 'no-cache'}", **tag}


def _known(request: Request, entry: Entry, kind: str) -> Response | None:
    headers = _kept(request, entry, kind)
    seen = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return Response(status_code=304, headers=headers) if headers.get("etag") in seen else None


@router.post("/api/login", status_code=204, openapi_extra=body("LoginAsked"), response_class=Response)
async def login(request: Request) -> Response:
    """A cookie for a token: a browser sends no header with the pictures of a page."""
    limits, access = served(request).limits, served(request).access
    limits = replace(limits, body_bytes=LOGIN_BYTES, seconds=min(LOGIN_SECONDS, limits.seconds))
    asked = await received(request, schemas.LoginAsked, limits)
    if not access.is_token(asked.token):
        raise Refused(401, "token", "that is not the token")
    response = Response(status_code=204)
    name = cookie_name(request.headers.get("host", ""))
    response.set_cookie(name, access.cookie, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def health() -> dict[str, str]:
    """Whether the service answers at all."""
    return {"status": "ok"}


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(served(request).metrics.text(), media_type="text/plain; version=0.0.4")


class Page:
    """The page, and what its scripts and styles are allowed to do: they alone run, and ask nobody but this service."""

    def __init__(self) -> None:
        self.html = files("cclm.retrieval.service").joinpath("page.html").read_text(encoding="utf-8")
        self.policy = (
            f"default-src 'none'; script-src {_hashes(self.html, 'script')}; style-src {_hashes(self.html, 'style')}; "
            "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
            "frame-ancestors 'none'; require-trusted-types-for 'script'"
        )


def _hashes(html: str, kind: str) -> str:
    digests = [sha256(content.encode()).digest() for found, content in _INLINE.findall(html) if found == kind]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    shown: Page = request.app.state.page
    headers = {"content-security-policy": shown.policy, "cache-control": "no-cache"}
    return Response(shown.html, headers=headers, media_type="text/html")
