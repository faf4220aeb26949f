"""A sample that is left out, and what errors and file names say, fit for the one line that we tell."""

from __future__ import annotations

import re

# Control characters, ends of lines, what turns the direction of the text around it, and bytes that are no Unicode.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class SampleError(ValueError):
    """A sample that is left out. `reason` is what is counted: few distinct strings, no keys in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def first_line(error: BaseException) -> str:
    """The first line of its message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """A file name, a caption .. as it may be shown on one line of a terminal: what would act on it is escaped."""
    return _UNFIT.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
