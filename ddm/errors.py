"""The exception for user errors, and the table look-up that raises it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """An error that the user can correct. The message is one line: the problem, the value found, the remedy."""


def first_line(error: BaseException, most: int = 120) -> str:
    """The first line of an error's message, shortened; without a message the error's type."""
    return (next(iter(str(error).strip().splitlines()), "") or type(error).__name__)[:most]


def closest(name: str, valid: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The valid name closest to `name`, ignoring case; None if none has difflib's ratio of `cutoff`."""
    by_lower = {v.lower(): v for v in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint with the valid name closest to `name`, or with all valid names if none is close."""
    valid = list(valid)
    close = closest(name, valid)
    if close:
        return f"did you mean {close!r}?"
    listed = ", ".join(valid)
    return f"choose from {listed if len(listed) < 150 else listed[:150].rsplit(', ', 1)[0] + ', ...'}"


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`; raises UserError with the nearest key if `name` is missing."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}: {nearest(name, table)}")
    return table[name]
