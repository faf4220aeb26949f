"""`cclm search`: an index asked from the command line."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import printable
from cclm.verbs.inputs import load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from PIL import Image

    from cclm.retrieval.index import Hit, ImageIndex
    from cclm.retrieval.query import Query
    from cclm.retrieval.searcher import Searcher

SHEETS = "*.explained.png"


def options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument(
        "query",
        type=str,
        nargs="?",
        default=None,
        help="""text such as 'beach -people "red car"^2', or an image file; last, after --, if it begins with minus""",
    )
    each = "give it once for each"
    parser.add_argument("--image", type=str, action="append", default=[], help=f"image file beside the text; {each}")
    parser.add_argument("--like", type=str, action="append", default=[], help=f"key of a picture to be like; {each}")
    parser.add_argument("-k", type=int, default=10, help="number of hits")
    parser.add_argument("--where", type=str, default=None, help="search among these: lang = 'de' and width > 500")
    parser.add_argument("--rerank", type=int, default=0, help="first hits that the matching head puts in a new order")
    parser.add_argument("--explain", type=Path, default=None, help="folder to write where in each hit the words are")
    parser.add_argument("--images", type=str, action="append", default=[], help=f"pictures' folder now; {each}")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--model", type=Path, default=None, help="the model's folder, where it has moved")
    parser.add_argument("--device", default="cpu")


def run(given: Namespace) -> None:
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.pictures import Pictures
    from cclm.retrieval.searcher import Searcher
    from cclm.storage import check_replaceable

    index = ImageIndex.open(given.index)
    query = _query(given, index)
    among = index.select(given.where) if given.where is not None else None
    if given.explain:
        check_replaceable(given.explain, [SHEETS])
        if query.subject is None:
            raise ValueError("explain shows where the words of a text are, and the query has no text; add one")
    model, _ = load(index.model(given.model), given.device)
    if given.rerank or given.explain:
        model.check_match()
    pictures = Pictures([Path(folder) for folder in given.images] or index.manifest.root_folders(index.folder))
    searcher = Searcher(index, model, pictures)
    hits = searcher.search([query], given.k, among, given.rerank)[0]
    sheets = _explained(searcher, query, hits, given.explain) if given.explain else {}
    if given.json:
        print(json.dumps([_fields(hit, given, sheets.get(hit.id)) for hit in hits], ensure_ascii=False))
    else:
        for hit in hits:
            match = f"  {'-' if hit.match is None else f'{hit.match:.3f}':>5}" if given.rerank else ""
            shown = printable(f"{hit.entry.key}  {hit.entry.caption()}")
            print(f"{hit.rank:3d}  {hit.score:6.3f}{match}  {shown}")
    if not hits:
        reason = f"no picture of it fulfils --where {given.where}" if len(index) else "it is empty"
        print(f"cclm: nothing matches in index {given.index}: {printable(reason)}", file=sys.stderr)
    _tell("reranked", searcher.unread)


def _query(given: Namespace, index: ImageIndex) -> Query:
    """Errors: ValueError for no query, and one that is wrong; FileNotFoundError for an image that is not there."""
    from cclm.retrieval.query import ImageTerm, IndexedTerm, Query, query_kind

    kind = None if given.query is None else query_kind(given.query)
    files = [*given.image, *([given.query] if kind == "image" else [])]
    also = [ImageTerm(_opened(Path(file))) for file in files]
    for key, id in zip(given.like, index.ids_of(given.like).tolist(), strict=True):
        if id < 0:
            raise ValueError(f"index {index.folder} has no picture of key {key!r}; check --like")
        also.append(IndexedTerm(id))
    return Query.parse(given.query if kind == "text" else "", also)


def _opened(file: Path) -> Image.Image:
    from cclm.errors import SampleError
    from cclm.images import open_image

    if not file.is_file():
        raise FileNotFoundError(f"there is no image file {file}; check the path")
    try:
        return open_image(file.read_bytes())
    except SampleError as error:
        raise ValueError(f"{file}: {error}; give another") from None


def _explained(searcher: Searcher, query: Query, hits: list[Hit], folder: Path) -> dict[int, Path]:
    """One sheet per hit, named by rank and key: id -> where it is. Pictures that cannot be read are told."""
    from cclm.errors import SampleError
    from cclm.models.heatmap import sheet
    from cclm.storage import whole_folder

    made, left_out = {}, Counter[str]()
    with whole_folder(folder) as partial:
        for hit in hits:
            try:
                explanation = searcher.explain(query.subject, hit.id)
                drawn = sheet(searcher.picture(hit.id), explanation)
            except SampleError as error:
                left_out[error.reason] += 1
                continue
            key = re.sub(r"[^\w-]+", "_", hit.entry.key)[:80]
            name = f"{hit.rank:03}_{key}{SHEETS.removeprefix('*')}"
            drawn.save(partial / name)
            made[hit.id] = folder / name
    _tell("explained", left_out)
    return made


def _tell(what: str, left_out: Counter[str]) -> None:
    for reason, count in left_out.most_common():
        print(f"cclm: not {what}: {count} x {reason}", file=sys.stderr)


def _fields(hit: Hit, given: Namespace, sheet: Path | None) -> dict[str, object]:
    date = hit.entry.date and hit.entry.date.isoformat()
    fields = {"rank": hit.rank, "score": hit.score, "id": hit.id, **asdict(hit.entry), "date": date}
    if given.rerank:
        fields["match"] = hit.match
    if given.explain:
        fields["explanation"] = sheet and str(sheet)
    return fields
