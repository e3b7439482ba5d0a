"""The cost and the stickiness of Ray Serve's proxy: `python -m benchmarks ray --pair NAME --replicas N`.

One ordinary server and one service on Ray run on this machine. Round trips to the two take turns, so that other work of
the machine slows both. A *verdict* is asked for one drafted token, which the model reads; *capabilities* need no model.
Then sessions open several streams each, one after the other, and every replica counts those that reach it.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import numpy as np

from benchmarks.kit.processes import ServerFailed, cloud_server
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from benchmarks.load.replicas import ENDED, OPEN, Replicas
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from chaperone_common.frames import Draft, Open, Opened, Verdict
from chaperone_common.types import SamplingParams, SessionId
from chaperone_common.wire import (
    GET_CAPABILITIES,
    SERVICE,
    SUPERVISE,
    decode_server,
    encode_capabilities_request,
    encode_client,
)

PROGRAM = ("cloud_supervisor.cli", "serve")  # its log names the ports of metrics
PROMPT = tuple(range(5, 21))
ROUNDS_OF_SESSION = 32
WARM_UP = 20  # rounds that are not counted
STREAMS_OF_SESSION = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=400, help="round trips of each kind to each service")
    parser.add_argument("--sessions", type=int, default=40, help=f"that open {STREAMS_OF_SESSION} streams each")
    parser.add_argument("--dtype", default="auto", help="of the cloud's model")
    parser.add_argument("--threads", type=int, default=1, help="of each model")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; raises ConfigError if an option is wrong."""
    for name, most in (("replicas", 64), ("rounds", 100_000), ("sessions", 10_000), ("threads", 64)):
        if not 1 <= getattr(args, name) <= most:
            raise ConfigError(f"--{name}: {getattr(args, name)} is outside [1, {most}]")
    measured = provenance()
    digest = load_manifest(pair_folder(args.pair, "cloud"), role="cloud").tokenizer_digest
    common = ("--dtype", args.dtype, "--threads", str(args.threads))
    on_ray = ("--engine", "ray", "--replicas", str(args.replicas), "--metrics", "127.0.0.1:0")
    with TemporaryDirectory() as temporary, ExitStack() as services:
        log = Path(temporary, "ray.log")
        direct = services.enter_context(cloud_server(args.pair, arguments=common))
        proxied = services.enter_context(
            cloud_server(args.pair, arguments=(*common, *on_ray), log=log, program=PROGRAM)
        )
        replicas = Replicas(proxied.pid, log)
        summary = asyncio.run(_measure(args, digest, {"direct": direct.address, "proxy": proxied.address}, replicas))
    settings = {name: getattr(args, name) for name in ("pair", "replicas", "rounds", "sessions", "dtype", "threads")}
    return {"benchmark": "ray", **measured, "settings": settings, "summary": summary, **summary}


async def _measure(
    args: argparse.Namespace, digest: str, addresses: dict[str, str], replicas: Replicas
) -> dict[str, Any]:
    channels = {name: grpc.aio.insecure_channel(address) for name, address in addresses.items()}
    ends = {name: Prober(channel, digest, name) for name, channel in channels.items()}
    summary: dict[str, Any] = {
        "verdict_ms": await _in_turns(args.rounds, ends, Prober.verdict),
        "capabilities_ms": await _in_turns(args.rounds, ends, Prober.capabilities),
    }
    for end in ends.values():
        end.close()
    summary |= await _stickiness(args.sessions, digest, addresses["proxy"], replicas)
    await asyncio.gather(*(channel.close() for channel in channels.values()))
    return summary


class Prober:
    """One device that asks one service for as little as possible, and measures the time."""

    def __init__(self, channel: grpc.aio.Channel, digest: str, name: str) -> None:
        self._supervise: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        self._supervise = channel.stream_stream(f"/{SERVICE}/{SUPERVISE}")
        self._ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        self._ask = channel.unary_unary(f"/{SERVICE}/{GET_CAPABILITIES}")
        self._digest = digest
        self._name = name
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._sessions = self._rounds = self._at = self._revision = 0

    async def capabilities(self) -> None:
        """Ask for the capabilities."""
        await self._ask(encode_capabilities_request())

    async def verdict(self) -> None:
        """Ask for a verdict on one token."""
        assert self._call is not None
        await self._call.write(encode_client(Draft(self._revision, self._at, (PROMPT[0],), (), self._at)))
        while not isinstance(frame := await _read(self._call), Verdict):
            pass
        self._at, self._revision = frame.position + 1, frame.revision
        self._rounds += 1

    async def prepare(self) -> None:
        """Open another session if the last one has had its rounds."""
        if self._call is None or self._rounds == ROUNDS_OF_SESSION:
            self.close()
            self._sessions += 1
            self._rounds, self._at, self._revision = 0, len(PROMPT), 0
            self._call = await opened(self._supervise, self._digest, f"{self._name} {self._sessions}")

    def close(self) -> None:
        """Leave the session."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


async def opened(
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes], digest: str, session: str
) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    """Open a stream of a session, and wait until the cloud has read its prompt."""
    call = method(metadata=(("session_id", session),))
    limit = 2 * ROUNDS_OF_SESSION + 2  # each verdict may decide two tokens
    await call.write(encode_client(Open(SessionId(session), digest, SamplingParams(), limit, (), PROMPT)))
    while not (isinstance(frame := await _read(call), Opened) and frame.prefilled):
        pass
    return call


async def _read(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> object:
    data = await call.read()
    if not isinstance(data, bytes):
        raise ServerFailed(f"ray: a stream ended with {(await call.code()).name}: {await call.details()}")
    return decode_server(data)


async def _in_turns(rounds: int, ends: dict[str, Prober], trip: Callable[[Prober], Awaitable[None]]) -> dict[str, Any]:
    """Return the times of round trips to each service, and what the proxy adds at the median."""
    times_ms: dict[str, list[float]] = {name: [] for name in ends}
    for number in range(WARM_UP + rounds):
        for name, end in ends.items():
            await end.prepare()
            began = time.perf_counter()
            await trip(end)
            if number >= WARM_UP:
                times_ms[name].append((time.perf_counter() - began) * 1e3)
    found: dict[str, Any] = {name: _percentiles(times) for name, times in times_ms.items()}
    return {**found, "added_p50": rounded(found["proxy"]["p50"] - found["direct"]["p50"])}


async def _stickiness(sessions: int, digest: str, address: str, replicas: Replicas) -> dict[str, Any]:
    """Return how many sessions had all their streams on one replica, each stream on a connection of its own."""
    kept, homes = 0, dict.fromkeys(replicas.by_address(), 0)
    before = replicas.streams(OPEN, ENDED)
    for number in range(sessions):
        for _ in range(STREAMS_OF_SESSION):
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                call = await opened(channel.stream_stream(f"/{SERVICE}/{SUPERVISE}"), digest, f"sticky {number}")
                call.cancel()
        after = replicas.streams(OPEN, ENDED)
        reached = [replica for replica in after if after[replica] > before.get(replica, 0)]
        if len(reached) == 1:
            kept += 1
            homes[reached[0]] += 1
        before = after
    return {"sessions": sessions, "sticky_sessions": kept, "sessions_by_replica": sorted(homes.values())}


def _percentiles(times_ms: list[float]) -> dict[str, float | None]:
    return {f"p{percent}": rounded(float(np.percentile(times_ms, percent))) for percent in (50, 95)}
