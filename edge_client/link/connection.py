"""The connection of one generation to its cloud: the open stream, and those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from chaperone_common.clock import Clock
from chaperone_common.errors import (
    ChaperoneError,
    CloudLost,
    CloudTimeout,
    CloudUnavailable,
    InternalError,
    InvalidRequest,
    ModelMismatch,
    Overloaded,
    PeerMismatch,
    VersionMismatch,
)
from chaperone_common.frames import Arrived, ClientFrame, Open, ServerFrame
from edge_client.link.reconnection import LOSSES, DelayedLink, Reconnection
from edge_client.ports import CloudLink

# Errors that may be a loss of the cloud; see `loss_of`.
POSSIBLE_LOSSES = (CloudLost, Overloaded, InternalError, InvalidRequest, PeerMismatch)


def loss_of(error: ChaperoneError, *, outgrown: bool, reopened: bool) -> ChaperoneError:
    """Return the error as a loss of the cloud if it is one; raise any other.

    After a reconnection the cloud may take smaller spans than before (`outgrown`). It may also have another model, or
    an earlier version (`reopened`).
    """
    match error:
        case InvalidRequest() if outgrown:
            return CloudUnavailable(error.message)
        case ModelMismatch() | VersionMismatch() if reopened:
            return error
        case InvalidRequest() | PeerMismatch():
            raise error
        case _:
            return error


def no_answer(waited_ms: float, position: int) -> CloudTimeout:
    """Return the error of a cloud that did not answer in time, while the final text ended at `position`."""
    return CloudTimeout(
        f"cloud: no answer within {waited_ms:.0f} ms at position {position}; it is overloaded or the link is down. "
        "Raise cloud.verification_deadline_ms (or cloud.open_deadline_ms for long prompts), or resume from the "
        "committed tokens"
    )


class Route(NamedTuple):
    """A way to the cloud for one generation: one of the cloud's addresses."""

    link: Callable[[], CloudLink]  # makes a stream, not yet opened
    on_loss: Callable[[ChaperoneError], None] | None = None  # called when such a stream is lost


class Connection:
    """A link that is made again when it breaks. Without a route, or after the cloud was given up, there is none."""

    def __init__(self, routes: Sequence[Route], clock: Clock, random: Random, *, reconnect_timeout_ms: float) -> None:
        """Make a first link with the first route, not yet opened.

        After a loss, try to reconnect for `reconnect_timeout_ms`, with all routes in turn.
        """
        self._routes = tuple(routes)
        self._clock = clock
        self._reconnection = Reconnection(clock, random, timeout_ms=reconnect_timeout_ms, routes=len(routes) or 1)
        self._link = routes[0].link() if routes else None
        self._reopened = False
        self._bytes_before = (0, 0)  # up and down, of the links before this one

    @property
    def is_up(self) -> bool:
        """True if there is a cloud to ask."""
        return self._link is not None

    @property
    def seeking(self) -> bool:
        """True if the cloud was lost, and has not answered on the new stream."""
        return self._reconnection.seeking

    @property
    def reopened(self) -> bool:
        """True if the stream is not the first one."""
        return self._reopened

    @property
    def bytes_up(self) -> int:
        """Payload bytes sent, on all streams."""
        return self._bytes_before[0] + (self._link.bytes_up if self._link is not None else 0)

    @property
    def bytes_down(self) -> int:
        """Payload bytes received, on all streams."""
        return self._bytes_before[1] + (self._link.bytes_down if self._link is not None else 0)

    async def open(self, frame: Open) -> None:
        """Start the stream."""
        if self._link is not None:
            await self._link.open(frame)

    def pause_ms(self, error: ChaperoneError) -> float | None:
        """Return the pause before the next attempt to reconnect; None to give the cloud up."""
        if not self._routes:
            return None
        on_loss = self._routes[self._reconnection.route].on_loss
        if on_loss is not None and isinstance(error, LOSSES):
            on_loss(error)
        return self._reconnection.pause_ms(error)

    async def reopen(self, frame: Open, *, after_ms: float) -> None:
        """Drop the stream, and start another after a pause, on the route that `pause_ms` chose."""
        self.hang_up()
        self._reopened = True
        self._link = DelayedLink(self._routes[self._reconnection.route].link(), after_ms, self._clock)
        await self._link.open(frame)

    def outcome(self, error: ChaperoneError) -> ChaperoneError:
        """Return the error to report when the cloud is given up after this one."""
        return self._reconnection.outcome(error)

    def send(self, frame: ClientFrame) -> None:
        """Queue a frame."""
        assert self._link is not None, "the planner sends only where there is a cloud"
        self._link.send(frame)

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        """Take the frames that have arrived, oldest first."""
        return self._link.ready() if self._link is not None else ()

    def on_frame(self, *, idle: bool) -> None:
        """Note that the cloud has answered; `idle` if it owes no further answer."""
        self._reconnection.on_frame(idle=idle)

    async def wait(self, patience_ms: float) -> float | None:
        """Sleep until a frame arrives, and return None; or return the milliseconds waited without one.

        While the device reconnects, the wait ends with the route's share of the time for reconnecting.
        """
        assert self._link is not None, "the planner waits only for a cloud"
        timeout_ms = self._reconnection.patience_ms if self.seeking else patience_ms
        return None if await self._link.wait(timeout_ms) else timeout_ms

    def close(self) -> None:
        """Send no more. The cloud's remaining answers can be taken."""
        if self._link is not None:
            self._link.close()

    def part(self) -> None:
        """Send no more, and go without a cloud. The stream ends when the cloud has answered."""
        self.close()
        self._bytes_before = (self.bytes_up, self.bytes_down)
        self._link = None

    def cancel(self) -> None:
        """End the stream at once."""
        if self._link is not None:
            self._link.cancel()

    def hang_up(self) -> None:
        """End the stream at once, and go without a cloud."""
        self.cancel()
        self._bytes_before = (self.bytes_up, self.bytes_down)
        self._link = None
