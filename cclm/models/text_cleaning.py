"""How the original code rewrites texts before its tokenizer sees them (reference/cclm.md 3.2), each way by its name."""

from __future__ import annotations

import re
from collections.abc import Callable

_MARKS = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~-/", " "))  # ASCII only: Chinese full stops stay
_GAP = re.compile(r"\s{2,}")


def _plain(text: str) -> str:
    return text


def _question(text: str) -> str:
    """Lower case, marks become blanks; the blanks stay as many as they are, and count as words."""
    return text.lower().translate(_MARKS).rstrip(" ")


def _caption(text: str) -> str:
    """Like a question, with one blank between words and `person` for the `<person>` of CC3M."""
    text = text.lower().translate(_MARKS).replace("<person>", "person")
    return _GAP.sub(" ", text).rstrip("\n").strip(" ")


CLEANINGS: dict[str, Callable[[str], str]] = {"none": _plain, "caption": _caption, "question": _question}


def clean_text(text: str, cleaning: str, max_words: int | None) -> str:
    """`text` cleaned by a rule of CLEANINGS and cut after `max_words` words; it may be empty then."""
    text = CLEANINGS[cleaning](text)
    return text if max_words is None else " ".join(text.split(" ")[:max_words])
