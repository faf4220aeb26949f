"""What every route does with a request: reads its body within limits, decodes its pictures, waits for its answer."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from cclm.errors import SampleError, first_line
from cclm.images import open_image
from cclm.retrieval.index import ImageIndex
from cclm.retrieval.metadata import Entry
from cclm.retrieval.searcher import PIXELS
from cclm.retrieval.service.limits import Limits, Refused, too_large
from cclm.retrieval.service.state import Service

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")


def served(request: Request) -> Service:
    return request.app.state.service


def told(answer: Any) -> Response:
    return Response(to_json(answer), media_type="application/json")


def body(kind: str) -> dict[str, Any]:
    """For the description of a route that reads its body itself."""
    reference = {"$ref": f"#/components/schemas/{kind}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


async def received(request: Request, kind: type[Model], limits: Limits | None = None) -> Model:
    """The JSON of a body, whatever its content type says; `limits`: the service's if none. Errors: Refused."""
    try:
        return kind.model_validate_json(await _body(request, limits or served(request).limits))
    except ValidationError as error:
        raise Refused(422, "invalid", validation_line(error.errors(include_url=False, include_input=False))) from None


async def _body(request: Request, limits: Limits) -> bytes:
    """Errors: Refused where it is too large, before it is there as a whole, or too slow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limits.body_bytes:
                    raise too_large(limits.body_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {limits.seconds:g} s"
        raise Refused(408, "slow", message, connection="close") from None
    return b"".join(parts)


def validation_line(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors: where, and what; nothing of what was sent but names of fields."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return " ".join(f"{where[:100]}: {first['msg'][:300]}".removeprefix(": ").split())


async def answer_of(request: Request, future: asyncio.Future[Result]) -> Result:
    """What the future brings; it is cancelled where the client leaves or the time is over.

    Errors: Refused for a ValueError in it, as most are of what was asked.
    """
    ended: list[Exception] = []

    def end(reason: Exception) -> None:
        ended.append(reason)
        future.cancel()

    # Callbacks of its own, as `asyncio.wait` takes longer than a query's share of a batch.
    loop, seconds = asyncio.get_running_loop(), served(request).limits.seconds
    late = Refused(503, "time", f"no answer within {seconds:g} s; ask for less, or again", **{"retry-after": "5"})
    timer = loop.call_later(seconds, end, late)
    leaving = loop.create_task(_left(request))
    leaving.add_done_callback(lambda task: task.cancelled() or end(ClientDisconnect()))
    try:
        return await future
    except asyncio.CancelledError:
        if ended:
            raise ended[0] from None
        raise
    except SampleError as error:
        raise Refused(404, "picture", first_line(error)) from None
    except ValueError as error:
        folder, name = served(request).searcher.index.folder, served(request).name
        line = str(error).replace(str(folder), name)  # where it lies is nobody's business
        raise Refused(422, "invalid", " ".join(line.split())) from None
    finally:
        timer.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def in_pool(request: Request, work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of work with pictures, in a thread of its own. Errors: as of `answer_of`."""
    future = asyncio.get_running_loop().run_in_executor(served(request).pool, work, *arguments)
    return await answer_of(request, future)


@asynccontextmanager
async def decoded(request: Request, texts: Sequence[str]) -> AsyncIterator[list[Image.Image]]:
    """Pictures of base64, a few of them in memory at once, whoever asks. Errors: Refused."""
    if not texts:
        yield []
        return
    async with served(request).decoding:
        try:
            yield [await in_pool(request, _decoded, text) for text in texts]
        except Refused as refused:
            raise Refused(422, "picture", refused.message) if refused.status == 404 else refused from None


def _decoded(text: str) -> Image.Image:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SampleError("the image is no base64; send a jpeg, png or webp file in it") from None
    return open_image(data, PIXELS)


def entry_of(index: ImageIndex, number: int) -> Entry:
    """Errors: Refused where there is no such picture, or no more."""
    try:
        return index.entries(np.array([number], np.int64))[0]
    except KeyError:
        raise Refused(404, "id", f"no picture of id {number}; it was deleted, or is of another index") from None
