"""Signs of life during steps that take minutes without any output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from chaperone_common.errors import ChaperoneError

Say = Callable[[str], None]  # takes one line for the user

_LINE_EVERY_S = 30.0
_CLOCK_EVERY_S = 1.0


@contextmanager
def signs_of_life(title: str, say: Say, *, on_terminal: bool, every_s: float | None = None) -> Iterator[None]:
    """Show the time that the block has taken: a running clock on a terminal, else a line every 30 s."""
    ended = threading.Event()
    step_s = every_s or (_CLOCK_EVERY_S if on_terminal else _LINE_EVERY_S)
    began_s = time.monotonic()
    with tqdm(desc=title, bar_format="{desc}: {elapsed}", leave=False, disable=not on_terminal) as clock:

        def tick() -> None:
            while not ended.wait(step_s):
                if on_terminal:
                    clock.refresh()
                    continue
                try:
                    say(f"{title}: at work for {time.monotonic() - began_s:.0f} s")
                except (ChaperoneError, OSError, ValueError):
                    return  # the reader has left; the main thread notices it at its next line

        ticking = threading.Thread(target=tick, name="signs-of-life", daemon=True)
        ticking.start()
        try:
            yield
        finally:
            ended.set()
            ticking.join()
