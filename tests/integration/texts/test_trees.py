"""Token trees over real gRPC with the tiny pair: the text stays the cloud's with every kind of branches."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks.strategies.families import strategy_named
from chaperone_common.session import Committed, Drafted, Retracted
from chaperone_common.types import Mode, Origin
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient
from edge_client.events import Event
from edge_client.generation import Collector, Generation
from edge_client.planner import AdaptivePlanner, FixedPlanner, Planner
from tests.support.device.branching_planner import BranchingPlanner
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving

SEEDS = 20
PROMPTS = ("the list of a number is", "import the class and", "each value in python", "def returned by")


def _peer(mode: Mode) -> Planner:
    return strategy_named("specedge-12").planner if mode is Mode.EXACT else AdaptivePlanner(mode)


def _several_spans(mode: Mode) -> Planner:
    return BranchingPlanner(FixedPlanner(mode, 3, spans_in_flight=3, run_ahead_tokens=12))


def _takeovers(mode: Mode) -> Planner:
    return BranchingPlanner(FixedPlanner(mode, 4, spans_in_flight=2, run_ahead_tokens=16, takeover_tokens=4))


PLANNERS = {"specedge-12": _peer, "several spans": _several_spans, "takeovers": _takeovers}


class Witness:
    """Counts accepted branch tokens: confirmed tokens that were never drafted as the text."""

    def __init__(self) -> None:
        self.stood = 0
        self._drafted: set[int] = set()

    def see(self, event: Event) -> None:
        match event:
            case Drafted(position):
                self._drafted.add(position)
            case Retracted(position):
                self._drafted = {drafted for drafted in self._drafted if drafted < position}
            case Committed(position, origin=Origin.VERIFIED):
                self.stood += position not in self._drafted
            case _:
                pass


async def _write(client: EdgeClient, mode: str, seed: int, temperature: float) -> tuple[Generation, int]:
    request = client.request(
        PROMPTS[seed % len(PROMPTS)], mode=mode, seed=seed, temperature=temperature, max_new_tokens=32
    )
    collected, witness = Collector(request), Witness()
    async for event in client.stream(request):
        collected.add(event)
        witness.see(event)
    return collected.result(), witness.stood


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_of_trees_equals_the_clouds(target: TorchModel, tiny_pair: Path, temperature: float) -> None:
    async def compare() -> Counter[str]:
        seen: Counter[str] = Counter()
        async with AsyncExitStack() as stack:
            server, address = await stack.enter_async_context(serving(target, tiny_pair))
            clients = {
                name: await stack.enter_async_context(EdgeClient(config_for(address), planner=planner))
                for name, planner in PLANNERS.items()
            }
            for seed in range(SEEDS):
                cloud, _ = await _write(clients["specedge-12"], "cloud", seed, temperature)
                for name, client in clients.items():
                    tree, stood = await _write(client, "exact", seed, temperature)
                    assert (tree.token_ids, tree.text) == (cloud.token_ids, cloud.text), f"{name}, seed {seed}"
                    assert tree.finish_reason is cloud.finish_reason
                    seen[name] += stood
            assert server.cloud.supervisor.counters.refused == 0
        return seen

    seen = asyncio.run(compare())
    for name in PLANNERS:
        assert seen[name] >= 5, f"{name}: too few accepted branch tokens for a meaningful test"
