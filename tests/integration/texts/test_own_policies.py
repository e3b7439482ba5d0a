"""Planners and gates of the caller, in place of the configured ones."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from chaperone_common.types import Mode, Signal
from edge_client import EdgeClient, Generation
from edge_client.gate import Gate
from edge_client.planner import FixedPlanner, Planner
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving

PROMPT = "the list of a number is"


@dataclass
class EveryNth(Gate):
    """Fires on every nth call, for any token."""

    nth: int
    asked: list[Signal] = field(default_factory=list)

    def fires(self, signal: Signal) -> bool:
        self.asked.append(signal)
        return len(self.asked) % self.nth == 0


def test_a_custom_gate_replaces_the_configured_one(tiny_pair: Path) -> None:
    gates: list[tuple[Mode, EveryNth]] = []

    def gate(mode: Mode) -> Gate:
        gates.append((mode, EveryNth(4)))
        return gates[-1][1]

    async def write() -> list[Generation]:
        async with (
            serving(fake_target(tiny_pair), tiny_pair) as (_, address),
            EdgeClient(config_for(address, risk=0.0), gate=gate) as client,
        ):
            return [await client.generate(PROMPT, mode=mode, max_new_tokens=24) for mode in ("gated", "gated", "edge")]

    *gated, edge = asyncio.run(write())
    assert [mode for mode, _ in gates] == ["gated", "gated", "edge"], "one gate for each generation"
    for generation, (_, own) in zip(gated, gates, strict=False):
        # An end-of-text that is drafted astray fires as well; the configured gate would fire at each token.
        assert 0 < len(own.asked) // 4 <= generation.stats.fired < len(own.asked) // 2
        assert generation.stats.skipped_tokens > 0, "the configured gate would have fired on every token"
    assert edge.stats.fired == 0, "there is no cloud to ask"


def test_a_custom_planner_replaces_the_configured_one(tiny_pair: Path) -> None:
    asked: list[Mode] = []

    def planner(mode: Mode) -> Planner:
        asked.append(mode)
        return FixedPlanner(mode, span_tokens=3, spans_in_flight=1, run_ahead_tokens=3)

    async def write() -> list[Generation]:
        async with (
            serving(fake_target(tiny_pair), tiny_pair) as (_, address),
            EdgeClient(config_for(address), planner=planner) as client,
        ):
            return [await client.generate(PROMPT, mode=mode, max_new_tokens=8) for mode in ("cloud", "exact")]

    cloud, exact = asyncio.run(write())
    assert asked == [Mode.CLOUD, Mode.EXACT]
    assert cloud.stats.takeover_tokens == 7, "handed over at once, and the first token is no part of the takeover"
    assert exact.token_ids == cloud.token_ids
    assert exact.stats.takeover_tokens == exact.stats.hidden_round_trips == 0, (
        "the configured planner would do more than wait"
    )
