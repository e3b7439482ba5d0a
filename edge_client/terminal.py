"""How text looks on a terminal: coloured by who vouches for it."""

from __future__ import annotations

import os
from typing import TextIO

from common.types import Origin

_COLOURS = {
    Origin.DRAFT: "36",  # cyan
    Origin.VERIFIED: "32",  # green
    Origin.OVERRIDE: "1;33",  # bold yellow
    Origin.BONUS: "33",  # yellow
    Origin.TAKEOVER: "35",  # magenta
    Origin.UNVERIFIED: "31",  # red
}


def colours_wanted(stream: TextIO) -> bool:
    """Only on a terminal, and not against the user's wish (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def painted(text: str, origin: Origin) -> str:
    """Text in the colour of its origin."""
    return f"\x1b[{_COLOURS[origin]}m{text}\x1b[0m" if text else ""


def legend() -> str:
    """The origins, each in its colour."""
    return ", ".join(painted(str(origin), origin) for origin in Origin)
