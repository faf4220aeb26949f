"""What is asked of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def query_kind(query: str) -> Literal["image", "text"]:
    """Whether a query is the path of an image file or a text.

    Errors: ValueError for an empty query; FileNotFoundError for what looks like an image path but names no file: a
    typing error, hardly a text.
    """
    if not query.strip():
        raise ValueError("the query is empty; give a text, or the path of an image file")
    path = Path(query)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        if path.suffix and path.is_file():
            raise ValueError(
                f"query {query!r} is a file, but of none of {', '.join(sorted(IMAGE_SUFFIXES))}; convert it"
            )
        return "text"
    if not path.is_file():
        raise FileNotFoundError(f"query {query!r} looks like an image file, but there is none; check the path")
    return "image"
