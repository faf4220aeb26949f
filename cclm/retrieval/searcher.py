"""Queries -> hits: embeds their terms, asks the index, and lets the matching head judge the first hits again.

Q queries, N texts or pictures, E embedding.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cclm.errors import SampleError
from cclm.retrieval.index import Hit, ImageIndex, Selection
from cclm.retrieval.query import ImageTerm, IndexedTerm, Query, Term, TextTerm, VectorTerm

if TYPE_CHECKING:
    from PIL import Image

    from cclm.retrieval.metadata import Entry
    from cclm.types import Explanation

logger = logging.getLogger(__name__)

REMEMBERED = 4096  # texts whose embeddings are kept: who types, or turns a page, asks the same again
PICTURES = 16  # in memory at once while hits are judged again; other searches go on between
PIXELS = 512  # a side of a picture that is judged or explained, at least: models read less


class QueryEncoder(Protocol):
    """What embeds queries and judges hits; `CCLMModel` is one. Errors: ValueError, one line."""

    def embed_texts(self, texts: list[str], *, progress: bool | None) -> np.ndarray:
        """(N, E) float32, unit norm."""
        ...

    def embed_images(self, images: list[Image.Image], *, progress: bool | None) -> np.ndarray:
        """(N, E) float32, unit norm."""
        ...

    def score(self, images: list[Image.Image], texts: list[str], *, progress: bool | None) -> np.ndarray:
        """(N,) float32: probability that the picture and the text at the same place match."""
        ...

    def explain(self, image: Image.Image, text: str) -> Explanation: ...


class PictureReader(Protocol):
    """Where the pictures of entries are read; `Pictures` is one."""

    def open(self, entry: Entry, size: int | None = None) -> Image.Image:
        """Errors: SampleError for one that cannot be read."""
        ...


class Searcher:
    """Answers queries from an index; any number of threads may ask at once.

    `index` and `pictures` may be replaced while others search: a search keeps to the index that it began with.
    `unread` counts the pictures that could not be judged, by reason.
    """

    def __init__(self, index: ImageIndex, encoder: QueryEncoder, pictures: PictureReader | None = None) -> None:
        self.index, self.encoder, self.pictures = index, encoder, pictures
        self.unread: Counter[str] = Counter()
        self._texts: OrderedDict[str, np.ndarray] = OrderedDict()  # the one asked for last is the last
        self._remembering = Lock()
        self._encoding = Lock()  # a fast tokenizer serves one thread at a time, and a model uses all cores anyway

    def embed(self, queries: Sequence[Query]) -> np.ndarray:
        """Unit-norm embeddings (Q, E) float32; the terms of all queries go through the encoder together.

        Errors: ValueError for no query, an unknown id, terms that cancel out, and as of the encoder.
        """
        return self._embedded(queries, self.index)

    def search(
        self, queries: Sequence[Query], k: int = 10, among: Selection | None = None, rerank: int = 0
    ) -> list[list[Hit]]:
        """The k nearest pictures of each query, best first.

        `rerank` n orders the first n of them anew, by the probability of a match (`Hit.match`). Of a query with
        several texts that is the probability that all match, but for those of a minus, which should not: a product, in
        which a text of less weight than the heaviest one counts for less. Pictures and embeddings in the query play
        no part in it. A picture that cannot be read follows those that can; its `match` is None.

        Errors: ValueError as of `embed` and `ImageIndex.nearest`, and where there is nothing to rerank with: a query
        without a text, a model without a match head, no pictures.
        """
        index = self.index
        if rerank < 0 or k < 1:
            raise ValueError(f"k is {k}, rerank {rerank}; give 1 or more, and 0 or more")
        if rerank:
            self.check_rerank(queries)
        wanted = max(k, min(rerank, len(index)))
        found = index.search(self._embedded(queries, index), wanted, among)
        if not rerank:
            return found
        return [
            [*self.reranked(query, hits[:rerank]), *hits[rerank:]][:k]
            for query, hits in zip(queries, found, strict=True)
        ]

    def explain(self, text: str, id: int) -> Explanation:
        """Where in the picture of this id the model finds the words of the text.

        Errors: ValueError for an id that is not there, a picture that cannot be read, and as of the encoder.
        """
        image = self.picture(id)
        with self._encoding:
            return self.encoder.explain(image, text)

    def picture(self, id: int) -> Image.Image:
        """The picture of this id, in RGB. Errors: ValueError for an id that is not there, or one that is not read."""
        if self.pictures is None:
            raise ValueError("this searcher has no pictures to read; tell where they are")
        index = self.index
        try:
            return self.pictures.open(index.entries(np.array([id]))[0], PIXELS)
        except (KeyError, OverflowError):
            raise _unknown(id, index) from None

    def check_rerank(self, queries: Sequence[Query]) -> None:
        """Errors: ValueError where there is nothing to rerank with."""
        if self.pictures is None:
            raise ValueError("reranking reads the pictures, and this searcher has none; tell where they are")
        if any(query.subject is None for query in queries):
            raise ValueError("reranking judges pictures by a text, and a query has none; add one, or do not rerank")

    def reranked(self, query: Query, hits: list[Hit], stop: Callable[[], bool] | None = None) -> list[Hit]:
        """The hits, best match first, then those that cannot be read; equal ones stay in their order.

        They are judged a few at a time, so that others can search meanwhile; from where `stop` says so, no more are.
        """
        judged: list[Hit] = []
        for start in range(0, len(hits), PICTURES):
            part = hits[start : start + PICTURES]
            judged += part if stop and stop() else self._judged(query, part)
        judged.sort(key=lambda hit: -1.0 if hit.match is None else hit.match, reverse=True)
        return [replace(hit, rank=rank) for rank, hit in enumerate(judged, start=1)]

    def _judged(self, query: Query, hits: Sequence[Hit]) -> list[Hit]:
        opened = {place: image for place, hit in enumerate(hits) if (image := self._opened(hit.entry))}
        if not opened:
            return list(hits)
        texts = query.texts
        images = [image for image in opened.values() for _ in texts]
        with self._encoding:
            scores = self.encoder.score(images, [term.text for term in texts] * len(opened), progress=False)
        weights = np.array([term.weight for term in texts])
        scores = scores.astype(np.float64).reshape(len(opened), len(texts))
        agreed = np.where(weights > 0, scores, 1 - scores)
        matches = (agreed ** np.abs(weights / weights.max())).prod(1)
        found = dict(zip(opened, matches.tolist(), strict=True))
        return [replace(hit, match=found.get(place)) for place, hit in enumerate(hits)]

    def _opened(self, entry: Entry) -> Image.Image | None:
        assert self.pictures is not None
        try:
            return self.pictures.open(entry, PIXELS)
        except SampleError as error:
            with self._remembering:
                self.unread[error.reason] += 1
            logger.warning("picture %s is not reranked: %s", entry.key, error)
            return None

    def _embedded(self, queries: Sequence[Query], index: ImageIndex) -> np.ndarray:
        if not queries:
            raise ValueError("no query given; give at least one")
        terms = [term for query in queries for term in query.terms]
        vectors: list[np.ndarray] = [np.empty(0)] * len(terms)
        for kind, embed in self._ways(index).items():
            places = [place for place, term in enumerate(terms) if isinstance(term, kind)]
            if places:
                for place, vector in zip(places, embed([terms[place] for place in places]), strict=True):
                    vectors[place] = _checked(vector, index)
        own = iter(vectors)
        return np.stack([query.combined(np.stack([next(own) for _ in query.terms])) for query in queries])

    def _ways(self, index: ImageIndex) -> dict[type[Term], Callable[[list], Sequence[np.ndarray]]]:
        """How the terms of each kind are embedded, all at once."""
        return {
            TextTerm: self._of_texts,
            ImageTerm: self._of_images,
            IndexedTerm: lambda terms: _indexed([term.id for term in terms], index),
            VectorTerm: lambda terms: [term.vector for term in terms],
        }

    def _of_images(self, terms: list[ImageTerm]) -> np.ndarray:
        with self._encoding:
            return self.encoder.embed_images([term.image for term in terms], progress=False)

    def _of_texts(self, terms: list[TextTerm]) -> list[np.ndarray]:
        texts = dict.fromkeys(term.text for term in terms)
        with self._remembering:
            known = {text: self._texts[text] for text in texts if text in self._texts}
        missing = [text for text in texts if text not in known]
        if missing:
            with self._encoding:
                known |= zip(missing, self.encoder.embed_texts(missing, progress=False), strict=True)
        with self._remembering:
            for text in texts:
                self._texts[text] = known[text]
                self._texts.move_to_end(text)
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        return [known[term.text] for term in terms]


def _indexed(ids: list[int], index: ImageIndex) -> np.ndarray:
    try:
        return index.vectors(np.array(ids, np.int64))
    except KeyError as error:
        raise _unknown(error.args[0], index) from None
    except OverflowError:
        raise _unknown(max(ids, key=abs), index) from None


def _unknown(id: int, index: ImageIndex) -> ValueError:
    return ValueError(f"index {index.folder} has no picture of id {id}; it was deleted, or is of another index")


def _checked(vector: np.ndarray, index: ImageIndex) -> np.ndarray:
    if vector.shape != (index.manifest.dim,):
        raise ValueError(
            f"an embedding of the query has shape {vector.shape}, those of index {index.folder} "
            f"({index.manifest.dim},); they are not of one model"
        )
    return vector
