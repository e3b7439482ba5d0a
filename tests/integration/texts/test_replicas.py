"""A text continues on another server process, over real gRPC: after a kill, a restart, and a move without a fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.session import Committed, Finished
from chaperone_common.types import OnDeviation, Origin
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, GateSettings, PlannerSettings
from edge_client.events import Event
from tests.support.fakes.target import fake_target
from tests.support.links.forwarder import Forwarder, forwarding
from tests.support.models import oracle
from tests.support.processes.clients import SLOW, ending_of
from tests.support.processes.commands import server_process
from tests.support.processes.servers import serving

pytestmark = pytest.mark.timeout(400)  # one of its servers imports torch

PROMPT = "the list of a number is"
NEW_TOKENS = 100
TEMPERATURE = 0.9
Act = Callable[[Forwarder], None]
# Of `gated`, the texts are equal if deviations are taken back.
GATES = {
    "exact": GateSettings(),
    "gated": GateSettings(policy="threshold", risk=0.3, on_deviation=OnDeviation.RETRACT),
}


def config(address: str, gate: GateSettings, planner: PlannerSettings | None = None) -> EdgeConfig:
    return EdgeConfig(
        pair="tiny",
        closing_audit=True,
        cloud=CloudSettings(address=address, connect_timeout_ms=20_000.0),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=gate,
        planner=planner or PlannerSettings(),
    )


def text_of(events: Sequence[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Committed)]


def long_text(pair: Path, model: TargetModel) -> tuple[int, list[int]]:
    """Return a seed, and the text that the cloud writes with it, which is long enough."""

    async def search() -> tuple[int, list[int]]:
        async with serving(model, pair) as (_, address), EdgeClient(config(address, GATES["exact"])) as client:
            for seed in range(100):
                parameters: dict[str, Any] = {"temperature": TEMPERATURE, "seed": seed, "max_new_tokens": NEW_TOKENS}
                result = await client.generate(PROMPT, mode="cloud", **parameters)
                if len(result.token_ids) == NEW_TOKENS:
                    return seed, [*result.token_ids]
        raise AssertionError("the model ends every text early")

    return asyncio.run(search())


@pytest.fixture(scope="module")
def whole(tiny_pair: Path, target: TorchModel) -> tuple[int, list[int]]:
    return long_text(tiny_pair, target)


async def write(
    address: str,
    mode: str,
    gate: GateSettings,
    seed: int,
    acts: Mapping[int, Act],
    planner: PlannerSettings | None = None,
) -> list[Event]:
    """Return the events of a text through a forwarder; each act runs when its number of tokens is final."""
    due = dict(acts)
    events: list[Event] = []
    async with forwarding(address) as forwarder, EdgeClient(config(forwarder.address, gate, planner)) as client:
        parameters: dict[str, Any] = {"temperature": TEMPERATURE, "seed": seed, "max_new_tokens": NEW_TOKENS}
        async for event in client.stream(PROMPT, mode=mode, **parameters):
            events.append(event)
            for count in [count for count in due if count <= len(text_of(events))]:
                due.pop(count)(forwarder)
    assert isinstance(ending_of(events), Finished)
    assert not due, "every act has run"
    return events


def reconnects(events: Sequence[Event]) -> int:
    ending = events[-1]
    assert isinstance(ending, Finished)
    assert ending.stats.unverified_tokens == 0
    assert ending.stats.promises_hold
    return ending.stats.reconnects


@pytest.fixture(scope="module")
def replica(tiny_pair: Path) -> Iterator[str]:
    """Return the address of a server that lives through all tests."""
    with server_process() as (_, address):
        yield address


@pytest.mark.parametrize("mode", GATES)
def test_a_text_continues_on_another_process_after_a_kill(tiny_pair: Path, mode: str) -> None:
    seed, expected = long_text(tiny_pair, fake_target(tiny_pair))
    with server_process(fake_model=True) as (first, address), server_process(fake_model=True) as (_, second):

        def kill(forwarder: Forwarder) -> None:
            forwarder.upstream = second
            first.kill()
            first.wait()

        events = asyncio.run(write(address, mode, GATES[mode], seed, {30: kill}, SLOW))
    assert text_of(events) == expected
    assert reconnects(events) == 1


@pytest.mark.parametrize("mode", GATES)
def test_a_text_continues_after_a_restart_of_its_process(tiny_pair: Path, mode: str) -> None:
    """The second process has the port of the first, and nothing of its memory."""
    seed, expected = long_text(tiny_pair, fake_target(tiny_pair))
    with ExitStack() as stack:
        first, address = stack.enter_context(server_process(fake_model=True))

        def restart(forwarder: Forwarder) -> None:
            first.kill()
            first.wait()
            _, again = stack.enter_context(server_process("--listen", address, fake_model=True))
            assert again == address

        events = asyncio.run(write(address, mode, GATES[mode], seed, {30: restart}, SLOW))
    assert text_of(events) == expected
    assert reconnects(events) == 1


@pytest.mark.parametrize("mode", GATES)
def test_a_text_moves_to_another_process_and_back_without_a_fault(
    tiny_pair: Path, target: TorchModel, replica: str, whole: tuple[int, list[int]], mode: str
) -> None:
    """Both processes live on. The first still has the session when the text comes back."""
    seed, expected = whole

    async def move() -> list[Event]:
        async with serving(target, tiny_pair, reconnect_grace_s=60.0) as (server, address):
            acts: dict[int, Act] = {
                25: lambda forwarder: forwarder.move(replica),
                50: lambda forwarder: forwarder.move(address),
                75: lambda forwarder: forwarder.move(replica),
            }
            events = await write(address, mode, GATES[mode], seed, acts, SLOW)
            assert server.cloud.supervisor.counters.refused == 0
            return events

    events = asyncio.run(move())
    assert text_of(events) == expected
    assert reconnects(events) == 3


def test_skipped_tokens_are_audited_once_wherever_the_text_moves(
    tiny_pair: Path, target: TorchModel, replica: str, whole: tuple[int, list[int]]
) -> None:
    """Timing decides which tokens are asked about, and so the text. Its deviations are those that the oracle finds."""
    seed, _ = whole
    gate = GateSettings(policy="threshold", risk=0.5)

    async def move() -> list[Event]:
        async with serving(target, tiny_pair, reconnect_grace_s=60.0) as (_, address):
            acts: dict[int, Act] = {10: lambda forwarder: forwarder.move(replica)}
            acts[30] = lambda forwarder: forwarder.move(address)
            return await write(address, "gated", gate, seed, acts)

    events = asyncio.run(move())
    committed = [event for event in events if isinstance(event, Committed)]
    client = EdgeClient(config(replica, gate))
    prompt = client.prepare(PROMPT).token_ids
    choices = oracle.choices(
        oracle.load(tiny_pair / "cloud"),
        prompt,
        text_of(events),
        vocabulary_size=client.manifest.vocabulary_size,
        temperature=TEMPERATURE,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=seed,
    )
    deviating = [event for event, choice in zip(committed, choices, strict=True) if event.token_id != choice]
    ending = events[-1]
    assert isinstance(ending, Finished)
    assert {event.origin for event in deviating} <= {Origin.DRAFT}
    assert ending.stats.deviations == len(deviating)
    assert ending.stats.audited_tokens == ending.stats.skipped_tokens > 0
