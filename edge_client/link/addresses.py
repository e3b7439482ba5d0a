"""The addresses of a cloud: the order in which a session tries them, whose turn it is, and which failed of late.

Rendezvous hashing (Thaler and Ravishankar, "A name-based mapping scheme for rendezvous", 1996) spreads the sessions
over the addresses. All devices compute the same order. If an address is removed, only its own sessions move.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from chaperone_common.clock import Clock

_AVOID_MS = 30_000.0  # an assumption: a server that is replaced is back after tens of seconds
_LEAST_SHARE_MS = 1_000.0  # a connection with TLS and one request take four round trips


def routing_key(session_id: str) -> str:
    """Return the part of a session id that decides where it goes: all turns of a conversation go to one server."""
    return session_id.partition(".")[0]


def rendezvous_order(session_id: str, addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses in the order in which a session tries them; the order of the input does not matter."""
    key = routing_key(session_id)
    return tuple(sorted(addresses, key=lambda address: (_weight(key, address), address), reverse=True))


def _weight(key: str, address: str) -> int:
    text = f"{key}\0{address}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


class Outages:
    """The addresses that failed of late, in any session of a client. Other sessions try them last for a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}  # seconds of the clock

    def note(self, address: str, retry_after_ms: int | None = None) -> None:
        """Note a failure. The while is `retry_after_ms` if the server named it, but never longer than the usual one."""
        avoid_ms = _AVOID_MS if retry_after_ms is None else min(_AVOID_MS, retry_after_ms)
        self._until[address] = self._clock.now() + avoid_ms / 1e3

    def clear(self, address: str) -> None:
        """Note an answer: the address is back."""
        self._until.pop(address, None)

    def last(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return the addresses in their order, but those that failed of late after the others."""
        now = self._clock.now()
        return tuple(sorted(addresses, key=lambda address: self._until.get(address, now) > now))


class Turn(NamedTuple):
    """The address to try next, by its number."""

    address: int
    asked_ms: float  # to wait, because the server asked for it
    pause_ms: float  # to wait in all


class _Pause(NamedTuple):
    asked_until: float
    until: float


class Turns:
    """The turns of the addresses of one session, while none of them answers.

    Each address is tried once without a pause, in order. After that comes the one whose pause ends first. All times are
    in milliseconds of one clock.
    """

    def __init__(self, count: int, *, first: int = 0) -> None:
        """Begin with the address `first`; the order is a circle."""
        self._count = count
        self._fresh = deque((first + step) % count for step in range(count))
        self._pauses: dict[int, _Pause] = {}
        self._failures = [0] * count

    def failures(self, index: int) -> int:
        """Return how often an address has failed."""
        return self._failures[index]

    def failed(self, index: int, now: float, *, asked_ms: float, pause_ms: float) -> None:
        """Note that an address failed. Its pause is `asked_ms`, which the server wants, and then `pause_ms`."""
        if index in self._fresh:
            self._fresh.remove(index)
        self._failures[index] += 1
        self._pauses[index] = _Pause(now + asked_ms, now + asked_ms + pause_ms)

    def next(self, now: float, left_ms: float) -> Turn | None:
        """Return the next turn; None if no time is left, or if each address asked for a longer pause than that."""
        if left_ms <= 0:
            return None
        if self._fresh:
            return Turn(self._fresh[0], 0.0, 0.0)
        due = [(pause.until, index) for index, pause in self._pauses.items() if pause.asked_until - now < left_ms]
        if not due:
            return None
        until, index = min(due)
        return Turn(index, max(0.0, self._pauses[index].asked_until - now), max(0.0, until - now))

    def share_ms(self, left_ms: float) -> float:
        """Return the time that the next address has for its answer, of the time that is left for all."""
        return min(left_ms, max(_LEAST_SHARE_MS, left_ms / (len(self._fresh) or self._count)))
