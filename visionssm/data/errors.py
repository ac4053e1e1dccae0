"""Errors that the person at the keyboard can mend; the tools print their one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = ["DataError", "UserError", "did_you_mean", "require_range"]


class UserError(ValueError):
    """Wrong input: the message names what was wrong and what would be right."""


class DataError(UserError):
    """A data set that is missing, empty, inconsistent or unreadable."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: close matches of `word` among `known`, or all of `known`."""
    known = sorted(known)
    close = get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def require_range(
    section: Any,
    place: str,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raises UserError for a field of a recipe's section that lies outside; None passes, of a sequence each value is checked."""
    words = {"at least": least, "more than": above, "at most": most, "less than": below}
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)
    for name in names:
        value = getattr(section, name)
        for number in value if isinstance(value, (tuple, list)) else () if value is None else (value,):
            inside = (
                (least is None or number >= least)
                and (above is None or number > above)
                and (most is None or number <= most)
                and (below is None or number < below)
            )
            if not inside:
                raise UserError(f"{place}.{name}={value} must be {wanted}")
