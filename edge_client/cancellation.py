"""Ending a generation early: by its time, by the client, or by a handle from anywhere."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from chaperone_common.errors import Cancelled, ChaperoneError, GenerationTimeout, InvalidRequest

T = TypeVar("T")

MAX_TIMEOUT_S = 86_400.0 * 365


class Cancellation:
    """A handle that cancels the generations it was given to; from any thread, task or signal handler.

    A cancelled generation ends with `Failed(Cancelled)` and keeps what was final. A handle is used once: what is
    asked with a cancelled one fails at once.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._stops: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """End the generations; idempotent."""
        self._cancelled = True  # no lock: a signal handler may strike while its own thread would hold it
        for stop in tuple(self._stops):
            stop()

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` when the handle is cancelled while inside, from the cancelling thread, perhaps twice."""
        self._stops.append(stop)
        try:
            if self._cancelled:
                stop()
            yield
        finally:
            self._stops.remove(stop)


class Interrupt:
    """Bounds the waiting of one generation; used on one event loop."""

    def __init__(self, timeout_s: float | None = None) -> None:
        """Let the generation take `timeout_s` seconds from now on, or as long as it likes. Raises InvalidRequest."""
        self._timeout_s = timeout_s
        self._deadline_at: float | None = None  # by the loop's clock
        if timeout_s is not None:
            if (
                isinstance(timeout_s, bool)
                or not isinstance(timeout_s, int | float)
                or not 0 < timeout_s <= MAX_TIMEOUT_S
            ):
                raise InvalidRequest(f"timeout: {timeout_s!r} is not a number of seconds above 0, up to a year")
            self._deadline_at = asyncio.get_running_loop().time() + timeout_s
        self._scope: asyncio.Timeout | None = None
        self._reason: ChaperoneError | None = None

    def stop(self, reason: ChaperoneError) -> None:
        """End what is awaited now, and whatever comes after, with this error; the first reason counts."""
        self._reason = self._reason or reason
        if self._scope is not None:
            with suppress(RuntimeError):  # it is ending anyway
                self._scope.reschedule(asyncio.get_running_loop().time())

    def canceller(self) -> Callable[[], None]:
        """Return a function that stops the generation with Cancelled, from any thread."""
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop has ended, and the generation with it
                loop.call_soon_threadsafe(self.stop, Cancelled("generation: it was cancelled"))

        return cancel

    def check(self) -> None:
        """Raise what the generation was stopped with, or GenerationTimeout once its time is over."""
        if self._reason is not None:
            raise self._reason
        if self._deadline_at is not None and asyncio.get_running_loop().time() >= self._deadline_at:
            raise self._too_late()

    async def bounded(self, work: Awaitable[T]) -> T:
        """Await `work`; raises GenerationTimeout when the time is over, and what `stop` was given."""
        if self._reason is not None:
            if inspect.iscoroutine(work):
                work.close()  # it is not even begun
            raise self._reason
        try:
            async with asyncio.timeout_at(self._deadline_at) as self._scope:
                return await work
        except TimeoutError:
            raise self._reason or self._too_late() from None
        finally:
            self._scope = None

    def _too_late(self) -> GenerationTimeout:
        return GenerationTimeout(
            f"timeout: the generation did not end within {self._timeout_s:g} s; give it more, or resume it from what "
            "is final"
        )
