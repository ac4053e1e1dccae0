"""Errors that the person at the keyboard can mend; the tools print their one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["DataError", "UserError", "did_you_mean"]


class UserError(ValueError):
    """Wrong input: the message names what was wrong and what would be right."""


class DataError(UserError):
    """A data set that is missing, empty, inconsistent or unreadable."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: close matches of `word` among `known`, or all of `known`."""
    known = sorted(known)
    close = get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
