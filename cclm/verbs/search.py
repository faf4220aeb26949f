"""`cclm search`: an index asked from the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.retrieval.index import Hit


def options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument("query", type=str)
    parser.add_argument("-k", type=int, default=10, help="number of hits")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--model", type=Path, default=None, help="the model's folder, where it has moved")
    parser.add_argument("--device", default="cpu")


def run(given: Namespace) -> None:
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.query import query_kind

    kind = query_kind(given.query)
    index = ImageIndex.open(given.index)
    model, _ = load(index.model(given.model), given.device)
    embedding = model.embed_images(given.query) if kind == "image" else model.embed_texts(given.query)
    hits = index.search(embedding, given.k)[0]
    if given.json:
        print(json.dumps([_fields(hit) for hit in hits], ensure_ascii=False))
    else:
        print("\n".join(f"{hit.rank:3d}  {hit.score:6.3f}  {hit.entry.key}  {hit.entry.caption()}" for hit in hits))


def _fields(hit: Hit) -> dict[str, object]:
    entry = asdict(hit.entry)
    date = hit.entry.date and hit.entry.date.isoformat()
    return {"rank": hit.rank, "score": hit.score, "id": hit.id, **entry, "date": date}
