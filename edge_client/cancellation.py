"""Ways to end a generation early: a timeout, the closing of the client, or a `Cancellation`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from chaperone_common.errors import Cancelled, ChaperoneError, GenerationTimeout, InvalidRequest
from chaperone_common.suggestion import shown

T = TypeVar("T")

MAX_TIMEOUT_S = 86_400.0 * 365


class Cancellation:
    """A handle that cancels the generations it was given to.

        handle = Cancellation()
        client.generate(prompt, cancellation=handle)  # handle.cancel() in another thread ends it

    A cancelled generation ends with `Failed(Cancelled)` and keeps its final tokens. A handle is used once: a
    generation that starts with a cancelled handle fails at once.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._stops: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """True after `cancel`."""
        return self._cancelled

    def cancel(self) -> None:
        """End the generations, from any thread, task or signal handler. Idempotent."""
        self._cancelled = True  # no lock: a signal handler may interrupt the thread that holds it
        for stop in tuple(self._stops):
            stop()

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` if the handle is cancelled inside the block: in the cancelling thread, perhaps twice."""
        self._stops.append(stop)
        try:
            if self._cancelled:
                stop()
            yield
        finally:
            self._stops.remove(stop)


class Interrupt:
    """The time limit and the stop signal of one generation, on one event loop."""

    def __init__(self, timeout_s: float | None = None) -> None:
        """Start the time of the generation: `timeout_s` seconds, or no limit. Raises InvalidRequest."""
        self._timeout_s = timeout_s
        self._deadline_at: float | None = None  # by the loop's clock
        if timeout_s is not None:
            if (
                isinstance(timeout_s, bool)
                or not isinstance(timeout_s, int | float)
                or not 0 < timeout_s <= MAX_TIMEOUT_S
            ):
                raise InvalidRequest(f"timeout: {shown(timeout_s)} is not a number of seconds above 0, up to a year")
            self._deadline_at = asyncio.get_running_loop().time() + timeout_s
        self._scope: asyncio.Timeout | None = None
        self._reason: ChaperoneError | None = None

    def stop(self, reason: ChaperoneError) -> None:
        """End the current and all later waiting with this error; the first reason counts."""
        self._reason = self._reason or reason
        if self._scope is not None:
            with suppress(RuntimeError):  # it has just ended
                self._scope.reschedule(asyncio.get_running_loop().time())

    def canceller(self) -> Callable[[], None]:
        """Return a function that stops the generation with Cancelled, from any thread."""
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop has ended, and the generation with it
                loop.call_soon_threadsafe(self.stop, Cancelled("generation: it was cancelled"))

        return cancel

    def check(self) -> None:
        """Raise the reason of `stop`, or GenerationTimeout after the time limit."""
        if self._reason is not None:
            raise self._reason
        if self._deadline_at is not None and asyncio.get_running_loop().time() >= self._deadline_at:
            raise self._too_late()

    async def bounded(self, work: Awaitable[T]) -> T:
        """Await `work`; raises GenerationTimeout after the time limit, and the reason of `stop`."""
        if self._reason is not None:
            if inspect.iscoroutine(work):
                work.close()  # it never starts
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
            f"timeout: the generation did not end within {self._timeout_s:g} s",
            remedy="give it more time, or resume it from its final tokens",
        )
