"""Texts and batches on a terminal: tokens coloured by their origin, and a progress line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TextIO

from chaperone_common.clock import Clock
from chaperone_common.command.console import Console, Stream
from chaperone_common.command.console import painted as in_colour
from chaperone_common.types import Origin
from edge_client.apps.batch.run import Tally

_COLOURS = {
    Origin.DRAFT: "36",  # cyan
    Origin.VERIFIED: "32",  # green
    Origin.OVERRIDE: "1;33",  # bold yellow
    Origin.BONUS: "33",  # yellow
    Origin.TAKEOVER: "35",  # magenta
    Origin.UNVERIFIED: "31",  # red
}
_EVERY_S = 0.1  # between updates of the progress line


def colours_wanted(stream: TextIO) -> bool:
    """Return whether to use colours: on a terminal, unless the user refuses; see `chaperone_common.command.console`."""
    return Stream(stream, "the output", os.environ).is_coloured


def colour_of(origin: Origin) -> str:
    """Return the SGR parameters of an origin."""
    return _COLOURS[origin]


def painted(text: str, origin: Origin) -> str:
    """Return text in the colour of its origin."""
    return in_colour(text, _COLOURS[origin])


def legend(origins: Iterable[Origin] = Origin) -> str:
    """Return the names of origins, each in its colour."""
    return ", ".join(painted(str(origin), origin) for origin in Origin if origin in set(origins))


class Progress:
    """A line on a terminal with the progress of a batch."""

    def __init__(self, console: Console, clock: Clock, total: int | None) -> None:
        """`total` is the number of lines, if it is known."""
        self._console = console
        self._clock = clock
        self._total = total
        self._began_s = clock.now()
        self._shown_s = float("-inf")

    def __call__(self, tally: Tally) -> None:
        """Show the progress, unless it was shown a moment ago."""
        now_s = self._clock.now()
        if now_s - self._shown_s >= _EVERY_S:
            self._shown_s = now_s
            self._console.progress(self.line(tally))

    def line(self, tally: Tally) -> str:
        """Return the progress as one line."""
        lines = f"{tally.lines}" if self._total is None else f"{tally.lines} of {self._total}"
        seconds = self._clock.now() - self._began_s
        rate = tally.tokens / seconds if seconds > 0 else 0.0
        kept = f", {tally.kept} of them kept" if tally.kept else ""
        return f"[{lines} lines{kept}, {tally.failed} failed; {tally.tokens} tokens, {rate:.1f} tokens/s]"
