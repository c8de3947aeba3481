"""The one exception for mistakes that a user can correct, and the table look-up that raises it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake that the user can correct. Its text is one line: what is wrong, what was found, what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is closest to `name`, or list them all when none is close."""
    valid = list(valid)
    by_lower = {v.lower(): v for v in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    listed = ", ".join(valid)
    return f"choose from {listed if len(listed) < 150 else listed[:150].rsplit(', ', 1)[0] + ', ...'}"


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`; raises UserError naming the nearest key when there is none."""
    if name not in table:
        raise UserError(f"unknown {what} {name!r}: {nearest(name, table)}")
    return table[name]
