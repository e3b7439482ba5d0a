"""Signals that the tests' child processes must react to, however the tests were started."""

from __future__ import annotations

import signal
from types import FrameType


def let_children_be_interrupted() -> None:
    """Give child processes the default SIGINT where this process ignores it; this process still does.

    A shell without job control ignores SIGINT in background commands, and `nohup make test &` is often one.
    Programs inherit an ignored signal, but not a handler.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
