"""Parts of messages about what a user gave: values, cut to a readable length, and hints about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_SHOWN = 80  # characters of a value or name in a message
_LONGEST_NAME = 100  # of which a near one is sought


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """Return a value as it is written in Python, cut to a readable length: it may be a whole text."""
    try:
        text = repr(value)
    except Exception:  # of the user's own class, or a number with more digits than Python prints
        return f"a value of type {type(value).__name__}"
    return cut(text, most)


def cut(text: str, most: int = MOST_SHOWN) -> str:
    """Return a text, cut to a readable length."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def summary(text: str, tokens: int | None = None) -> str:
    """Return the beginning of a text, and its length, for the `repr` of an object that holds it."""
    counts = [f"{len(text)} characters", *([] if tokens is None else [f"{tokens} tokens"])]
    return f"{shown(text, 50)} ({', '.join(counts)})"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an `s` unless there is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a hint to append to a message: the nearest known name, or all known names; "" if there are none."""
    if near := nearest(given, known):
        return near
    names = ", ".join(known)
    return f" (known: {names})" if names else ""


def nearest(given: str, known: Iterable[str]) -> str:
    """Return a hint with the nearest known name, or "" if none is near. For messages that list the names themselves."""
    close = near_name(given, known)
    return "" if close is None else f" (did you mean {close!r}?)"


def near_name(given: str, known: Iterable[str]) -> str | None:
    """Return the nearest known name, or None if none is near."""
    close = difflib.get_close_matches(given, list(known), n=1) if len(given) <= _LONGEST_NAME else []
    return close[0] if close else None
