"""What the service is asked and what it answers, as JSON; unknown fields are refused, but for clip-retrieval's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from cclm.retrieval.index import Hit
from cclm.retrieval.metadata import Entry
from cclm.retrieval.query import MAX_CHARACTERS, MAX_TERMS, MAX_WEIGHT

MOST_HITS = 1000  # that one request may ask for, pages before it included
MOST_RERANKED = 200
ID = 2**63 - 1

Id = Annotated[int, Field(ge=0, le=ID)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
UpTo = AfterValidator(lambda count: min(count, MOST_HITS))  # where clients ask for more as a habit


class Asked(BaseModel):
    """Numbers are numbers, not texts of digits."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TermAsked(Asked):
    """One of text, image (base64) and like (an id); a negative weight leads away from it."""

    weight: Annotated[FiniteFloat, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)] = 1.0
    text: Text | None = None
    image: str | None = Field(None, description="base64 of a jpeg, png or webp file, or a data: URL of it")
    like: Id | None = None


class SearchAsked(Asked):
    """Text, image, like and terms may stand together: the query is their weighted sum."""

    text: Text | None = Field(None, description='in any language, signs allowed: beach -people "red car"^2')
    image: str | None = Field(None, description="base64 of a jpeg, png or webp file, or a data: URL of it")
    like: Id | None = Field(None, description="a picture of the index: more like this one")
    terms: list[TermAsked] = Field([], max_length=MAX_TERMS)
    k: Annotated[int, Field(ge=1, le=MOST_HITS)] = 30
    offset: Annotated[int, Field(ge=0, le=MOST_HITS)] = Field(0, description="hits to leave out, the best first")
    where: Text | None = Field(None, description="a filter, such as: lang = 'de' and width > 500")
    rerank: Annotated[int, Field(ge=0, le=MOST_RERANKED)] = Field(
        0, description="how many of the first hits the matching head orders anew"
    )


class HitTold(BaseModel):
    id: int
    score: float
    match: float | None = Field(description="probability that query and picture match, where it was reranked")
    key: str
    path: str | None = Field(description="of its file, or of its tar, below its folder")
    size: int | None = Field(description="bytes")
    captions: dict[str, list[str]]
    width: int | None
    height: int | None
    date: str | None = Field(description="ISO 8601, no time zone")
    thumbnail: str = Field(description="path of a webp of at most 256 pixels a side")
    image: str


class SearchTold(BaseModel):
    hits: list[HitTold]
    took_ms: float
    version: int = Field(description="of the index; another one than before: its pictures have changed")


class FieldTold(BaseModel):
    name: str
    type: str


class IndexTold(BaseModel):
    name: str
    rows: int
    version: int
    model: str
    data: str
    languages: list[str] = Field(description="of captions, the most frequent first")
    fields: list[FieldTold] = Field(description="what filters may name")
    rerank: bool
    explain: bool
    most_hits: int
    most_reranked: int
    most_characters: int


class ExplanationTold(BaseModel):
    tokens: list[str]
    heat: list[list[list[float]]] = Field(description="per token, rows of patches, 0 to 1")
    shares: list[float] = Field(description="how much of all heat is the token's own")
    overall: list[list[float]]
    match: float


class LoginAsked(Asked):
    token: Annotated[str, Field(max_length=1000)]


class Problem(BaseModel):
    error: str = Field(description="what is wrong and what to do, in one line")


class KnnAsked(BaseModel):
    """clip-retrieval's query. What else its client sends (safety models, aesthetics, mclip) plays no part here."""

    model_config = ConfigDict(extra="ignore")

    text: Text | None = None
    image: str | None = None
    image_url: str | None = Field(None, description="refused: this service fetches nothing")
    embedding_input: Annotated[list[FiniteFloat], Field(max_length=65536)] | None = None
    modality: Literal["image", "text"] = Field("image", description="text is refused: pictures are indexed")
    num_images: Annotated[int, Field(ge=0), UpTo] = Field(100, description="hits that come with metadata")
    num_result_ids: Annotated[int, Field(ge=1), UpTo] | None = Field(
        None, description=f"hits in all; cut to {MOST_HITS}"
    )
    indice_name: str | None = None
    deduplicate: bool | None = Field(False, description="leave out hits that look like a better one")


class MetadataAsked(BaseModel):
    model_config = ConfigDict(extra="ignore")

    ids: Annotated[list[Id], Field(max_length=MOST_HITS)]
    indice_name: str | None = None


class KnnTold(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: int
    similarity: float


class MetadataTold(BaseModel):
    id: int
    metadata: dict[str, Any]


def version_of(entry: Entry) -> str | None:
    """What sets a picture apart from others of its id, as in another index at the same address; None: not known."""
    return entry.sha256[:12] if entry.sha256 else None


def _version(entry: Entry) -> str:
    version = version_of(entry)
    return f"?v={version}" if version else ""


def hit_told(hit: Hit) -> dict[str, Any]:
    """As `HitTold`; a dict, as a thousand validated objects would take longer than the search."""
    entry = hit.entry
    return {
        "id": hit.id,
        "score": hit.score,
        "match": hit.match,
        "key": entry.key,
        "path": entry.path,
        "size": entry.size,
        "captions": entry.captions,
        "width": entry.width,
        "height": entry.height,
        "date": entry.date and entry.date.isoformat(),
        "thumbnail": f"/thumbnails/{hit.id}{_version(entry)}",
        "image": f"/images/{hit.id}{_version(entry)}",
    }


def metadata_told(number: int, entry: Entry, base: str) -> dict[str, Any]:
    """Under clip-retrieval's names; `url` is where this service shows the picture."""
    return {
        "image_path": entry.path if entry.offset is None and entry.path else entry.key,
        "caption": entry.caption(),
        "language": next(iter(entry.captions), ""),
        "url": f"{base}/images/{number}{_version(entry)}",
        "key": entry.key,
        "captions": entry.captions,
        "width": entry.width,
        "height": entry.height,
    }
