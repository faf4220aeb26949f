"""The routes of clip-retrieval's service, so that its clients find ours: one index, pictures only, nothing fetched."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter, Request, Response

from cclm.retrieval.index import ImageIndex
from cclm.retrieval.metadata import Entry
from cclm.retrieval.query import ImageTerm, Query, VectorTerm
from cclm.retrieval.service import schemas
from cclm.retrieval.service.batching import Found
from cclm.retrieval.service.limits import Refused
from cclm.retrieval.service.reading import answer_of, body, decoded, in_pool, received, served, told
from cclm.retrieval.service.state import Service

router = APIRouter(tags=["clip-retrieval"])
ALIKE = 0.94  # cosine from which on two pictures count as one: clip-retrieval's own


@router.post("/knn-service", responses={200: {"model": list[schemas.KnnTold]}}, openapi_extra=body("KnnAsked"))
async def knn(request: Request) -> Response:
    """The nearest pictures of a text, an image or an embedding: the first of the three that is there."""
    service, asked = served(request), await received(request, schemas.KnnAsked)
    _check_index(service, asked.indice_name)
    if asked.image_url:
        raise Refused(400, "url", "this service never fetches; send the image itself, as base64")
    if asked.modality != "image":
        raise Refused(400, "modality", "texts are not indexed here; ask for modality image")
    wanted = asked.num_result_ids or max(1, asked.num_images)
    by_image = asked.image if not asked.text else None
    async with decoded(request, [by_image] if by_image else []) as images:
        query = Query((ImageTerm(images[0]),)) if images else _query(service, asked)
        found = await answer_of(request, service.batcher.search(query, wanted))
    if asked.deduplicate:
        found = await in_pool(request, distinct, found)
    base = f"{request.url.scheme}://{request.url.netloc}"
    return told(
        [
            (schemas.metadata_told(hit.id, hit.entry, base) if place < asked.num_images else {})
            | {"id": hit.id, "similarity": hit.score}
            for place, hit in enumerate(found.hits)
        ]
    )


@router.post("/metadata", responses={200: {"model": list[schemas.MetadataTold]}}, openapi_extra=body("MetadataAsked"))
async def metadata(request: Request) -> Response:
    """What is known of pictures, by id: of those that are there."""
    service, asked = served(request), await received(request, schemas.MetadataAsked)
    _check_index(service, asked.indice_name)
    index, base = service.searcher.index, f"{request.url.scheme}://{request.url.netloc}"
    found = [(number, entry) for number in asked.ids if (entry := _entry(index, number))]
    return told([{"id": number, "metadata": schemas.metadata_told(number, entry, base)} for number, entry in found])


@router.get("/indices-list")
async def indices(request: Request) -> list[str]:
    """Names of indices; there is one."""
    return [served(request).name]


def distinct(found: Found) -> Found:
    """Without the hits that look like a better one."""
    if not found.hits:
        return found
    vectors = found.index.vectors(np.array([hit.id for hit in found.hits]))
    kept: list[int] = []
    for place, alike in enumerate(vectors @ vectors.T > ALIKE):
        if not alike[kept].any():
            kept.append(place)
    return Found([found.hits[place] for place in kept], found.index)


def _entry(index: ImageIndex, number: int) -> Entry | None:
    try:
        return index.entries(np.array([number], np.int64))[0]
    except KeyError:
        return None


def _query(service: Service, asked: schemas.KnnAsked) -> Query:
    if asked.text and asked.text.strip():
        return Query.of(asked.text)
    if not asked.embedding_input:
        raise Refused(422, "invalid", "nothing to search with; give text, image or embedding_input")
    dim = service.searcher.index.manifest.dim
    vector = np.array(asked.embedding_input)
    if len(vector) != dim or not 1e-30 < np.abs(vector).max() < 1e30:
        raise Refused(422, "invalid", f"embedding_input has {len(vector)} numbers; give {dim}, finite and not all 0")
    return Query((VectorTerm(vector.astype(np.float32)),))


def _check_index(service: Service, name: str | None) -> None:
    if name is not None and name != service.name:
        raise Refused(404, "index", f"no such index here; there is {service.name!r}")
