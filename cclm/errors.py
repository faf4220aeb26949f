"""What errors of other libraries say, fit for the one line that we tell."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of its message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
