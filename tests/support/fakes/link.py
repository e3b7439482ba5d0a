"""A link without a network: frames arrive at once, and a test or a function plays the cloud."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.frames import Arrived, ClientFrame, Close, Closed, Draft, Failure, Open, Opened, ServerFrame
from chaperone_common.session import CloudSession, VerificationRequest
from chaperone_common.session.prefixes import completed
from chaperone_common.wire import encode_client, encode_server
from cloud_supervisor.model.ports import ForwardRequest
from tests.support.fakes.target import FakeTarget

Cloud = Callable[[ClientFrame], Iterable[ServerFrame]]


class FakeLink:
    """Obeys the contract of `CloudLink`.

    `cloud` receives every sent frame, and the frames that it returns arrive at once. Without it, a test plays the cloud
    by `deliver` and `hang_up`. The connection is lost after `lasts` frames from the cloud.
    """

    def __init__(self, cloud: Cloud | None = None, *, lasts: int | None = None, clock: Clock | None = None) -> None:
        self._cloud = cloud
        self._clock = clock or MonotonicClock()
        self._left = lasts
        self._inbox: deque[Arrived[ServerFrame]] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._up = self._down = 0
        self.opened = asyncio.Event()
        self.opened_at: float | None = None  # by the loop's clock
        self.sent: list[ClientFrame] = []
        self.closed = False
        self.cancelled = False
        self.waits = 0

    @property
    def bytes_up(self) -> int:
        return self._up

    @property
    def bytes_down(self) -> int:
        return self._down

    async def open(self, frame: Open) -> None:
        self.opened.set()
        self.opened_at = asyncio.get_running_loop().time()
        if self._left == 0:
            self.hang_up()
        self.send(frame)

    def send(self, frame: ClientFrame) -> None:
        self._up += len(encode_client(frame))
        if self.closed:
            return
        self.sent.append(frame)
        if self._cloud is not None:
            self.deliver(*self._cloud(frame))

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        self._arrived.clear()
        frames = tuple(self._inbox)
        self._inbox.clear()
        return frames

    async def wait(self, timeout_ms: float) -> bool:
        self.waits += 1
        try:
            async with asyncio.timeout(timeout_ms / 1e3):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.closed = True

    def cancel(self) -> None:
        self.closed = self.cancelled = True
        if self.opened_at is not None:
            self.hang_up("CANCELLED")

    def deliver(self, *frames: ServerFrame) -> None:
        """Let frames arrive; nothing follows a terminal one."""
        for frame in frames:
            if self._ended:
                return
            self._down += len(encode_server(frame))
            self._put(frame)
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self.hang_up()

    def hang_up(self, status: str = "UNAVAILABLE") -> None:
        """End the stream as a lost connection does."""
        if not self._ended:
            self._put(Failure(status, "cloud: it went away"))

    def _put(self, frame: ServerFrame) -> None:
        self._ended = self._ended or isinstance(frame, Closed | Failure)
        self._inbox.append(Arrived(frame, self._clock.now()))
        self._arrived.set()


def cloud_of(target: FakeTarget, *, held: Sequence[int] = ()) -> Cloud:
    """Return a cloud that answers every frame at once with the choices of `target`.

    It holds the text `held` of an earlier session.
    """
    sessions: list[tuple[Open, CloudSession]] = []

    def choices(wanted: VerificationRequest) -> list[int]:
        opening, _ = sessions[0]
        if not wanted.num_choices:
            return []
        forward = ForwardRequest(target.kv_pool.new_cache(), wanted.tree, wanted.num_choices, opening.sampling)
        return [choice.token_id for choice in target.forward([forward])[0]]

    def serve(frame: ClientFrame) -> Iterable[ServerFrame]:
        if isinstance(frame, Open):
            frame = frame if frame.prefix is None else completed(frame, held) or frame
            session = CloudSession(frame, context_tokens=target.context_tokens, vocabulary_size=target.vocabulary_size)
            sessions.append((frame, session))
            yield Opened(prefilled=False, context_tokens=target.context_tokens)
            yield Opened(prefilled=True, context_tokens=target.context_tokens)
            return
        assert isinstance(frame, Draft | Close)
        _, session = sessions[0]
        request = session.receive(frame)
        if request is not None:
            yield session.answer(request, choices(request))
        while session.writes:
            writing = session.writing()
            yield session.answer(writing, choices(writing))

    return serve
