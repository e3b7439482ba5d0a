"""Bounds on what devices can make of labels and of memory."""

from __future__ import annotations

OTHER = "other"


class BoundedLabels:
    """The first values of a label by their names, and all further ones as `OTHER`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        """Return the label of a value; it never changes."""
        if value in self._known:
            return value
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value
