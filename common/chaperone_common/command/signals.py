"""The signals that end a service."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from chaperone_common.command.program import EXIT_SIGNAL


def ended_at_once() -> AbstractContextManager[None]:
    """Within the block let SIGTERM end the process, also as the first process of a container; Ctrl-C does anyway."""

    def handle(number: int, _: FrameType | None) -> None:
        os._exit(EXIT_SIGNAL + number)

    return _signals_handled(handle)


def first_and_second_signal(stop: Callable[[], object]) -> AbstractContextManager[None]:
    """Within the block let the first SIGINT or SIGTERM call `stop`, and the second one end the process at once.

    These are Python's own handlers, not the event loop's. So the second signal works even if the loop is stuck.
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(EXIT_SIGNAL + number)
        received.append(number)
        stop()

    return _signals_handled(handle)


@contextmanager
def _signals_handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
