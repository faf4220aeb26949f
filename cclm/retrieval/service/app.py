"""The web application around a searcher: a page, its JSON, and clip-retrieval's routes.

The page's API; all errors are {"error": one line}:
POST /api/search           {text?, image? (base64), like? (id), terms? [{weight, text | image | like}], k = 30,
                           offset = 0, where?, rerank = 0} -> {hits: [{id, score, match, key, path, size, captions
                           {language: [text]}, width, height, date, thumbnail, image}], took_ms, version}
GET /api/index             {name, rows, version, model, data, languages, fields [{name, type}], rerank, explain,
                           most_hits, most_reranked, most_characters}
GET /api/explain?id=&text= {tokens, heat [token][row][column] 0..1, shares [token], overall [row][column], match}
GET /thumbnails/ID         webp, at most 256 pixels a side; GET /images/ID: the file as it is; both with an ETag, and
                           kept for a day where ?v= names the content, as in what hits tell
POST /api/login            {token} -> 204 and a cookie, for <img>, which sends no header; 401 for another token
GET /healthz, /metrics, /openapi.json; GET / is the page. No /docs: its scripts would come from elsewhere.
Status: 400 never fetched, 401 token (everything but /, /healthz and /api/login, where the service has one), 403 other
origin, 404 no such id, 408 slow body, 413 large body, 421 other host, 422 not as described, 429 and 503 ask again
after Retry-After, 431 large head. The page's scripts and styles are in it and allowed by hash: no style="" and no
on..="" attributes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from cclm.retrieval.service import clip_retrieval, routes, schemas
from cclm.retrieval.service.limits import Guard, Refused, problem
from cclm.retrieval.service.reading import validation_line
from cclm.retrieval.service.state import Service

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": what}
    for status, what in {
        400: "Asked for what this service never does.",
        401: "A token is needed.",
        403: "Asked by a page of another origin.",
        404: "No such picture or index.",
        408: "The body is too slow.",
        413: "The body is too large.",
        421: "Asked under a name that is not this service's.",
        422: "Not as described here.",
        429: "Too many requests.",
        431: "The request line and headers are too large.",
        503: "Too busy.",
    }.items()
}


def create_app(service: Service, watch_seconds: float = 1.0) -> ASGIApp:
    """The application; its lifespan ends the service's threads. `watch_seconds`: between looks for a new version."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch(watch_seconds))
        yield
        watching.cancel()
        service.close()

    app = FastAPI(
        title="cclm",
        summary="Search pictures in any language.",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_PROBLEMS,
        lifespan=lifespan,
    )
    app.state.service, app.state.page = service, routes.Page()
    app.include_router(routes.router)
    app.include_router(clip_retrieval.router)
    _answer_errors(app, service)
    _describe_bodies(app)
    if service.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(service.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return Guard(app, service.limits, service.access, service.metrics)


def _answer_errors(app: FastAPI, service: Service) -> None:
    """Every error is one line of JSON."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        service.metrics.rejected.labels(error.reason).inc()
        return problem(error.status, error.message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, Refused(422, "invalid", validation_line(error.errors())))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return problem(500, "something is wrong with the service; its log tells more")


def _describe_bodies(app: FastAPI) -> None:
    """Put the bodies that routes read themselves into the description."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            kinds = (schemas.SearchAsked, schemas.LoginAsked, schemas.KnnAsked, schemas.MetadataAsked)
            _, asked = models_json_schema(
                [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
            )
            describe()["components"]["schemas"].update(asked["$defs"])
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]
