"""Statistics of results."""

from __future__ import annotations


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Round a number for a file that people read; keep None."""
    return None if value is None else round(value, digits)
