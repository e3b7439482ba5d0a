"""The streams of one generation: the first one, and those that take its place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from chaperone_common.clock import Clock
from chaperone_common.errors import ChaperoneError, PrefixNotFound, ProtocolViolation
from chaperone_common.frames import Open, ServerFrame
from chaperone_common.session import DeviceSession
from chaperone_common.session.prefixes import shortened
from chaperone_common.types import SessionId
from edge_client.engine.conditioning import Conditioning
from edge_client.link.connection import POSSIBLE_LOSSES, Connection, loss_of
from edge_client.planner import Pipeline

# Errors after which another stream may take the place of the one that failed.
STREAM_ERRORS = (PrefixNotFound, *POSSIBLE_LOSSES)


class Streams:
    """Opens the session on one stream after another; the pipeline measures the time of each."""

    def __init__(
        self,
        session: DeviceSession,
        cloud: Connection,
        pipeline: Pipeline,
        clock: Clock,
        known_to_cloud: tuple[SessionId, int] | None,
        conditioning: Conditioning,
    ) -> None:
        """`known_to_cloud` is an earlier session, and how many of its tokens the prompt begins with."""
        self._session = session
        self._cloud = cloud
        self._pipeline = pipeline
        self._clock = clock
        self._known_to_cloud = known_to_cloud
        self._conditioning = conditioning

    @property
    def prefix_unanswered(self) -> bool:
        """True if the last Open referred to an earlier session, and the cloud may have refused it."""
        return self._known_to_cloud is not None and not self._session.opened

    async def open(self) -> None:
        """Open the first stream. Its Open refers to the text that the cloud may still hold."""
        opening, known = self._conditioning.opening(self._session.opening), 0
        if self._known_to_cloud is not None:
            _, known = self._known_to_cloud
            opening = shortened(opening, *self._known_to_cloud)
        self._pipeline.opened(self._now_ms, len(self._session.text), known)
        await self._cloud.open(opening)

    async def open_in_full(self, error: PrefixNotFound) -> None:
        """Open the session again: the cloud does not hold the text that the first Open referred to.

        Raises ProtocolViolation if the last Open referred to none.
        """
        if self._known_to_cloud is None:
            raise ProtocolViolation(f"cloud: it refuses a prefix that was not sent ({error.message})")
        self._known_to_cloud = None
        self._pipeline.opened(self._now_ms, len(self._session.text))
        await self._cloud.reopen(self._again(lost=False), after_ms=0.0)

    async def recover(self, error: ChaperoneError) -> ChaperoneError | None:
        """Open another stream after an error, and return None; or return the loss, if no other stream may help.

        Raises an error that is no loss of the cloud.
        """
        if isinstance(error, PrefixNotFound):
            await self.open_in_full(error)
            return None
        lost = loss_of(error, outgrown=self._session.outgrown, reopened=self._cloud.reopened)
        return None if await self.reconnect(lost) else lost

    async def until(
        self,
        reached: Callable[[], bool],
        receive: Callable[[ServerFrame, float], object],
        wait: Callable[[], Awaitable[None]],
    ) -> ChaperoneError | None:
        """Receive frames until something is reached, and return None; or return the loss of a cloud that stays away."""
        while self._cloud.is_up and not reached():
            try:
                for frame, at in self._cloud.ready():
                    receive(frame, at)
                if not reached():
                    await wait()
            except STREAM_ERRORS as error:
                if (lost := await self.recover(error)) is not None:
                    return lost
        return None

    async def reconnect(self, error: ChaperoneError) -> bool:
        """Open the session again on another stream, if that may help; return whether it was tried."""
        pause_ms = self._cloud.pause_ms(error)
        if pause_ms is None:
            return False
        self._pipeline.opened(self._now_ms + pause_ms)  # a pause before it is no part of the round trip
        await self._cloud.reopen(self._again(lost=True), after_ms=pause_ms)
        return True

    def _again(self, *, lost: bool) -> Open:
        """Return the Open of the next stream, which asks for the encoding if that is not whole, and still wanted."""
        self._conditioning.restart(lost=lost)
        return self._conditioning.opening(self._session.reopen(lost=lost))

    @property
    def _now_ms(self) -> float:
        return self._clock.now() * 1e3
