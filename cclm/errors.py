"""A sample that is left out, and what errors of other libraries say, fit for the one line that we tell."""

from __future__ import annotations


class SampleError(ValueError):
    """A sample that is left out. `reason` is what is counted: few distinct strings, no keys in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def first_line(error: BaseException) -> str:
    """The first line of its message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
