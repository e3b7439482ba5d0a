"""Clients of the tiny pair, and a client with a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from chaperone_common.session import Failed, Finished
from chaperone_common.types import OnDeviation
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, GateSettings, GenerationSettings, PlannerSettings
from edge_client.events import Event
from tests.support.processes.servers import serving

T = TypeVar("T")


def config_for(
    address: str,
    *,
    planner: PlannerSettings | None = None,
    risk: float = 0.12,
    closing_audit: bool = False,
    cloud: CloudSettings | None = None,
    generation: GenerationSettings | None = None,
) -> EdgeConfig:
    """Return settings for the tiny pair on one thread."""
    return EdgeConfig(
        pair="tiny",
        closing_audit=closing_audit,
        cloud=(cloud or CloudSettings()).model_copy(update={"address": address}),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=GateSettings(policy="threshold", risk=risk),
        planner=planner or PlannerSettings(),
        generation=generation or GenerationSettings(),
    )


NOBODY = "127.0.0.1:1"  # no server listens there
IMPATIENT = CloudSettings(connect_timeout_ms=300.0)  # for an absent server, which is waited for in full
# The cloud is never more than a few tokens ahead, so that a server that goes leaves its text unfinished. Otherwise it
# may have written the rest by itself, and nothing is left to continue elsewhere.
SLOW = PlannerSettings(policy="fixed", span_tokens=2, spans_in_flight=2, run_ahead_tokens=4)


def impatient_options(folder: Path) -> tuple[str, ...]:
    """Return options of `chaperone generate` for an absent server that is not waited for; they write a file."""
    path = folder / "impatient.yaml"
    path.write_text(f"cloud:\n  connect_timeout_ms: {IMPATIENT.connect_timeout_ms}\n", encoding="utf-8")
    return "--config", str(path), "--cloud", NOBODY


def retracting_options(folder: Path) -> tuple[str, ...]:
    """Return options of `chaperone generate` with which two texts of `gated` are equal; they write a file.

    Otherwise timing decides which tokens the cloud is asked about, and so the text.
    """
    path = folder / "retracting.yaml"
    path.write_text(f"gate:\n  on_deviation: {OnDeviation.RETRACT}\n", encoding="utf-8")
    return "--config", str(path)


def connected_to(client: EdgeClient) -> list[str]:
    """Return the addresses to which a client has a connection."""
    return [site.address for site in client._assembly.peer._sites.values() if site.connected]


def ending_of(events: Sequence[Event]) -> Finished | Failed:
    """Return the last event, after checking that no other event is terminal."""
    terminal = [event for event in events if isinstance(event, Finished | Failed)]
    assert len(terminal) == 1, f"{len(terminal)} terminal events"
    assert events[-1] is terminal[0], "the terminal event is not the last one"
    return terminal[0]


@asynccontextmanager
async def both_ends(target: TargetModel, pair: Path, **settings: Any) -> AsyncIterator[tuple[EdgeClient, Server]]:
    async with serving(target, pair) as (server, address), EdgeClient(config_for(address, **settings)) as client:
        yield client, server


def run(
    target: TargetModel, pair: Path, scenario: Callable[[EdgeClient, Server], Coroutine[Any, Any, T]], **settings: Any
) -> T:
    async def play() -> T:
        async with both_ends(target, pair, **settings) as (client, server):
            return await scenario(client, server)

    return asyncio.run(play())
