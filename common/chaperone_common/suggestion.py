"""Hints for messages about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a hint to append to a message: the nearest known name, or all known names; "" if there are none."""
    if near := nearest(given, known):
        return near
    names = ", ".join(known)
    return f" (known: {names})" if names else ""


def nearest(given: str, known: Iterable[str]) -> str:
    """Return a hint with the nearest known name, or "" if none is near. For messages that list the names themselves."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
