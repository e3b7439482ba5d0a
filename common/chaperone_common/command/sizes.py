"""Sizes, as commands show them."""

from __future__ import annotations


def shown_bytes(size: int) -> str:
    """Return a number of bytes with a unit of thousands."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:  # above it, three digits would be 1000
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} GB"
