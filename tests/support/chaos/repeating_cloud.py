"""A device's connection that repeats Drafts, and stamps what arrives by a clock that jumps."""

from __future__ import annotations

import time
from collections import Counter, deque
from random import Random

from chaperone_common.frames import Capabilities, ClientFrame, Draft, Open
from chaperone_common.types import SessionId
from edge_client.config import CloudSettings
from edge_client.link.credentials import read_credentials
from edge_client.link.grpc_link import GrpcCloud, GrpcLink
from edge_client.ports import Metadata

_REMEMBERED = 3  # Drafts, which may come again after later ones


class JumpingClock:
    """Shows the seconds of the machine's clock, after all jumps."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def now(self) -> float:
        return time.monotonic() + self._offset_s

    def jump(self, seconds: float) -> None:
        self._offset_s += seconds


class RepeatingCloud:
    """A `GrpcCloud` on whose streams a share of the Drafts is followed by one of the last ones, or by itself.

    `sessions` holds the id of the session that it opened last.
    """

    def __init__(
        self, settings: CloudSettings, clock: JumpingClock, random: Random, seen: Counter[str], *, repeated: float
    ) -> None:
        self._cloud = GrpcCloud(settings.addresses[0], read_credentials(settings, {}), clock)
        self._random = random
        self._seen = seen
        self._repeated = repeated
        self.sessions: deque[SessionId] = deque(maxlen=1)

    @property
    def connected(self) -> bool:
        return self._cloud.connected

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        return await self._cloud.capabilities(timeout_ms)

    def link(self, metadata: Metadata = ()) -> _RepeatingLink:
        return _RepeatingLink(self._cloud.link(metadata), self.sessions, self._random, self._seen, self._repeated)

    async def close(self) -> None:
        await self._cloud.close()


class _RepeatingLink:
    def __init__(
        self, link: GrpcLink, sessions: deque[SessionId], random: Random, seen: Counter[str], repeated: float
    ) -> None:
        self._link = link
        self._sessions = sessions
        self._random = random
        self._seen = seen
        self._repeated = repeated
        self._past: deque[Draft] = deque(maxlen=_REMEMBERED)
        self.ready = link.ready
        self.wait = link.wait
        self.close = link.close
        self.cancel = link.cancel

    @property
    def bytes_up(self) -> int:
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._link.bytes_down

    async def open(self, frame: Open) -> None:
        self._sessions.append(frame.session_id)
        await self._link.open(frame)

    def send(self, frame: ClientFrame) -> None:
        self._link.send(frame)
        if isinstance(frame, Draft):
            self._past.append(frame)
            if self._random.random() < self._repeated:
                self._seen["Draft repeated"] += 1
                self._link.send(self._random.choice(self._past))
