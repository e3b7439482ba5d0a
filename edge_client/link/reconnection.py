"""Reconnection to a lost cloud: when to try, for how long, and a link that opens after a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from chaperone_common.clock import Clock
from chaperone_common.errors import ChaperoneError, CloudLost, Overloaded
from chaperone_common.frames import Arrived, ClientFrame, Failure, Open, ServerFrame
from edge_client.link.addresses import Turns
from edge_client.link.diagnosis import OR_WENT_AWAY, without_remedy
from edge_client.ports import CloudLink

# Full jitter, as in Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. The two constants are
# assumptions: a reset connection is usually back at once, and a cloud that restarts takes seconds.
_FIRST_PAUSE_MS = 100.0
_LONGEST_PAUSE_MS = 5_000.0
_LAST_MS = 500.0  # no pause ends later than this before the end of the time, except for short ones


LOSSES = CloudLost, Overloaded  # after which another attempt may help


class Reconnection:
    """The policy after a loss of one generation's cloud.

    A loss begins with an error and ends with the cloud's next answer. Attempts to reconnect are made until
    `timeout_ms` have passed since the loss; the last one is made right before that. The first attempts use the other
    routes, each once and without a pause.
    """

    def __init__(self, clock: Clock, random: Random, *, timeout_ms: float, routes: int = 1) -> None:
        """Begin with the first of `routes`, which are numbered from 0."""
        self._clock = clock
        self._random = random
        self._timeout_ms = timeout_ms
        self._routes = routes
        self._turns = Turns(routes)
        self._loss: ChaperoneError | None = None
        self._lost_at = 0.0
        self._attempts = 0
        self._opens_at_ms = 0.0  # the latest attempt
        self.route = 0
        self.seeking = False  # an attempt is under way, and the cloud has not answered

    @property
    def left_ms(self) -> float:
        """The time left for attempts."""
        return max(0.0, self._timeout_ms - (self._clock.now() - self._lost_at) * 1e3)

    @property
    def patience_ms(self) -> float:
        """The time left for an answer to this attempt, after its pause."""
        left_ms = self.left_ms
        pause_ms = min(left_ms, max(0.0, self._opens_at_ms - self._clock.now() * 1e3))
        return pause_ms + self._turns.share_ms(left_ms - pause_ms)

    def pause_ms(self, error: ChaperoneError) -> float | None:
        """Choose the `route` of the next attempt, and return the pause before it, or None to give the cloud up."""
        if not isinstance(error, LOSSES):
            return None
        now_ms = self._clock.now() * 1e3
        if self._loss is None:
            self._loss, self._lost_at, self._attempts = error, self._clock.now(), 0
            self._turns = Turns(self._routes, first=self.route)
        jitter_ms = self._random.random() * min(
            _LONGEST_PAUSE_MS, _FIRST_PAUSE_MS * 2.0 ** self._turns.failures(self.route)
        )
        self._turns.failed(self.route, now_ms, asked_ms=error.retry_after_ms or 0, pause_ms=jitter_ms)
        shortest_ms = min(_FIRST_PAUSE_MS, 0.1 * self._timeout_ms)
        turn = self._turns.next(now_ms, self.left_ms - shortest_ms)
        if turn is None:
            return None
        latest_ms = turn.asked_ms + max(shortest_ms, self.left_ms - turn.asked_ms - _LAST_MS)
        pause_ms = min(turn.pause_ms, latest_ms)
        self.route, self._opens_at_ms = turn.address, now_ms + pause_ms
        self._attempts += 1
        self.seeking = True
        return pause_ms

    def on_frame(self, *, idle: bool) -> None:
        """Note that the cloud has answered. If the cloud is `idle`, it owes no answer, and the loss is over."""
        self.seeking = False
        if idle:
            self._loss = None

    def outcome(self, error: ChaperoneError) -> ChaperoneError:
        """Return the error to report for a cloud that was given up: the loss, and the failed attempts."""
        loss = self._loss
        if loss is None or not self._attempts or not isinstance(error, LOSSES):
            return error
        attempts = f"{self._attempts} attempt{'s' if self._attempts > 1 else ''} to reconnect"
        limit = f"{self._timeout_ms:.0f} ms (cloud.reconnect_timeout_ms)"
        asked_ms = error.retry_after_ms or 0
        if asked_ms and 0 < self.left_ms <= asked_ms + _FIRST_PAUSE_MS:
            message = (
                f"{loss.message}; {attempts} failed, the last one with: {error.message}; the {asked_ms} ms that the "
                f"cloud asks to wait would pass {limit}"
            )
        else:
            message = _said_once(loss.message, f"{attempts} within {limit} failed", error.message)
        return type(loss)(message, retry_after_ms=error.retry_after_ms)


def _said_once(loss: str, attempts: str, last: str) -> str:
    """Return one message of a loss and the last attempt after it: a cause and a remedy that both have come once."""
    first, failed = without_remedy(loss), without_remedy(last)
    remedy = last[len(failed) :] or loss[len(first) :]
    where, gone, _ = first.partition(OR_WENT_AWAY)
    if gone and failed.startswith(f"{where}{gone}"):  # one address: the last attempt knows the reason best
        return f"{where}went away; {attempts}: {failed.removeprefix(f'{where}{gone}')}{remedy}"
    return f"{first}; {attempts}, the last one with: {failed}{remedy}"


class DelayedLink:
    """A `CloudLink` whose stream opens after a pause; frames sent before follow the Open."""

    def __init__(self, link: CloudLink, pause_ms: float, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._pause_ms = pause_ms
        self._unsent: list[ClientFrame] = []
        self._beginning: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._closed = False
        self._last_word: tuple[Arrived[ServerFrame], ...] = ()  # of a stream that never began

    @property
    def bytes_up(self) -> int:
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._link.bytes_down

    async def open(self, frame: Open) -> None:
        self._beginning = asyncio.create_task(self._begin(frame))

    def send(self, frame: ClientFrame) -> None:
        if self._begun.is_set():
            self._link.send(frame)
        elif not self._closed:
            self._unsent.append(frame)

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        last_word, self._last_word = self._last_word, ()
        return last_word or self._link.ready()

    async def wait(self, timeout_ms: float) -> bool:
        try:
            async with asyncio.timeout(timeout_ms / 1e3):
                await self._begun.wait()
                return bool(self._last_word) or await self._link.wait(timeout_ms)
        except TimeoutError:
            return False

    def close(self) -> None:
        self._closed = True
        if self._begun.is_set():
            self._link.close()

    def cancel(self) -> None:
        self._closed = True
        if self._beginning is not None and not self._begun.is_set():
            self._beginning.cancel()
            failure = Failure("CANCELLED", "generation: it was cancelled on this device")
            self._last_word = (Arrived(failure, self._clock.now()),)
            self._begun.set()
        self._link.cancel()

    async def _begin(self, frame: Open) -> None:
        await asyncio.sleep(self._pause_ms / 1e3)
        await self._link.open(frame)
        for unsent in self._unsent:
            self._link.send(unsent)
        if self._closed:
            self._link.close()
        self._begun.set()
