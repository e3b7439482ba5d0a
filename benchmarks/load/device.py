"""A device that replays a recorded text: spans at times of its own, whatever the service does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import grpc
import grpc.aio

from benchmarks.kit.processes import ServerFailed
from chaperone_common.frames import Close, Closed, Continuation, Draft, Failure, Open, Opened, ServerFrame, Verdict
from chaperone_common.types import SamplingParams, SessionId
from chaperone_common.wire import SERVICE, SUPERVISE, decode_server, encode_client

_REFUSED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
_CUT = "Internal error from Core"  # grpc.aio's words for a stream that ended during a write; its status is lost
_RETRY_S = 1.0
ARRIVALS_PER_S = 200  # gRPC's core turns streams away that come by the thousand at once


@dataclass(frozen=True, slots=True)
class Recorded:
    """A prompt, the text that the cloud wrote after it, and the token that the device drafts at each place of it."""

    prompt: tuple[int, ...]
    text: tuple[int, ...]
    drafted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Habits:
    """The behaviour of all devices of a run."""

    digest: str  # of the tokenizer
    spans: int  # tokens of a span
    rate: float  # verifications per second of one device, on average


@dataclass
class Observed:
    """The observations of all devices of a run."""

    latency_ms: list[float] = field(default_factory=list)  # from the time at which a span was to be sent
    opening_ms: list[float] = field(default_factory=list)  # until the prompt was read
    committed: int = 0  # tokens
    refused: int = 0
    cut: int = 0  # streams that ended while their device wrote, mostly refused ones
    errors: Counter[str] = field(default_factory=Counter)
    late: int = 0  # spans that were to be sent while the one before was still being verified

    def begin(self) -> None:
        """Begin the time that is measured. Errors, refusals and openings count from the first device on."""
        self.latency_ms.clear()
        self.committed = self.late = 0


class Device:
    """Verifies one recorded text after the other, until it is cancelled."""

    def __init__(self, number: int, channel: grpc.aio.Channel, texts: Sequence[Recorded], habits: Habits) -> None:
        self._number = number
        self._call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/{SUPERVISE}")
        self._texts = texts
        self._habits = habits
        self._dice = Random(number)

    async def work(self, observed: Observed) -> None:
        """Work on; sessions that were refused or cut are tried again after a moment."""
        await asyncio.sleep(self._number / ARRIVALS_PER_S)
        count = self._number
        while True:
            recorded = self._texts[count % len(self._texts)]
            count += 1
            try:
                await self._text(f"device {self._number}, text {count}", recorded, observed)
            except grpc.aio.AioRpcError as error:
                if error.code() in _REFUSED:
                    observed.refused += 1
                elif error.code() is grpc.StatusCode.INTERNAL and error.details() == _CUT:
                    observed.cut += 1
                else:
                    observed.errors[error.code().name] += 1
                await asyncio.sleep(_RETRY_S)

    async def _text(self, session: str, recorded: Recorded, observed: Observed) -> None:
        habits, loop = self._habits, asyncio.get_running_loop()
        call = self._call()
        try:
            began = loop.time()
            opening = Open(
                SessionId(session), habits.digest, SamplingParams(), len(recorded.text) + 1, (), recorded.prompt
            )
            await self._send(call, opening)
            while not (isinstance(frame := await self._read(call), Opened) and frame.prefilled):
                pass
            observed.opening_ms.append((loop.time() - began) * 1e3)
            whole = (*recorded.prompt, *recorded.text)
            at, revision, due = len(recorded.prompt), 0, loop.time()
            while at + habits.spans < len(whole):
                due += self._dice.expovariate(habits.rate)
                if due < loop.time():
                    observed.late += 1
                else:
                    await asyncio.sleep(due - loop.time())
                first = at - len(recorded.prompt)
                span = recorded.drafted[first : first + habits.spans]
                await self._send(call, Draft(revision, at, span, (), at))
                while not isinstance(frame := await self._read(call), Verdict):
                    pass
                observed.latency_ms.append((loop.time() - due) * 1e3)
                observed.committed += frame.position + 1 - at
                at, revision = frame.position + 1, frame.revision
            await self._send(call, Close(at, ()))
            await call.done_writing()
            while not isinstance(await self._read(call), Closed):
                pass
        finally:
            call.cancel()

    async def _send(self, call: grpc.aio.StreamStreamCall[bytes, bytes], frame: Open | Draft | Close) -> None:
        await call.write(encode_client(frame))

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> ServerFrame:
        """Return the next frame; raise AioRpcError at the end of the stream, whether or not it says Failure first."""
        data = await call.read()
        if not isinstance(data, bytes) or isinstance(frame := decode_server(data), Failure):
            while isinstance(data, bytes):
                data = await call.read()
            raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata())
        return frame


async def write(channel: grpc.aio.Channel, digest: str, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """Let the cloud write a text after a prompt; raises ServerFailed if it does not write that many tokens."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/{SUPERVISE}")
    call = method()
    await call.write(encode_client(Open(SessionId("record"), digest, SamplingParams(), tokens, (), prompt)))
    await call.write(encode_client(Draft(0, len(prompt), (), (), len(prompt), continuation_tokens=tokens - 1)))
    text: list[int] = []
    while len(text) < tokens and isinstance(data := await call.read(), bytes):
        match decode_server(data):
            case Verdict(token_id=token_id):
                text.append(token_id)
            case Continuation(token_ids=token_ids):
                text += token_ids
            case _:
                pass
    call.cancel()
    if len(text) < tokens:
        raise ServerFailed(f"load: the cloud wrote {len(text)} of {tokens} tokens of a text to record")
    return tuple(text)


async def open_and_close(channel: grpc.aio.Channel, digest: str, prompt: Sequence[int]) -> None:
    """Let the cloud read a prompt, and end the session; raises ServerFailed if it ends first."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/{SUPERVISE}")
    call = method()
    try:
        await call.write(encode_client(Open(SessionId("long"), digest, SamplingParams(), 1, (), tuple(prompt))))
        while isinstance(data := await call.read(), bytes):
            if isinstance(frame := decode_server(data), Opened) and frame.prefilled:
                return
    finally:
        call.cancel()
    raise ServerFailed(f"load: the cloud did not read a prompt of {len(prompt)} tokens")
