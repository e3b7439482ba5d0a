"""A client that adapts to the cloud's corrections (`device.adapt`): the same texts, with fewer overrides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from chaperone_common.session import Committed
from chaperone_common.types import Mode
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings
from edge_client.model.corrections import Remembered
from edge_client.planner import AdaptivePlanner, FixedPlanner, Planner
from tests.support.device.branching_planner import BranchingPlanner
from tests.support.processes.servers import serving

PROMPTS = ("the list of a number is", "import the class and", "each value in python", "def returned by")
TEMPERATURES = (0.0, 0.8)


@dataclass(frozen=True, slots=True)
class Text:
    """A text, and how the device took part in it."""

    token_ids: tuple[int, ...]
    overrides: int
    remembered: int  # tokens that the memory proposed and the cloud judged
    right: int  # those of them that the cloud confirmed


def one_span(mode: Mode) -> Planner:
    """Draft and wait in turns, so that all counts are the same on any machine."""
    return FixedPlanner(mode, 4, 1, 4)


def several_spans_with_branches(mode: Mode) -> Planner:
    return BranchingPlanner(FixedPlanner(mode, 3, spans_in_flight=3, run_ahead_tokens=12))


PLANNERS: dict[str, Callable[[Mode], Planner]] = {
    "adaptive": AdaptivePlanner,
    "one span": one_span,
    "several spans with branches": several_spans_with_branches,
}


async def written(client: EdgeClient, mode: str, prompt: str, temperature: float, *, logprobs: bool = False) -> Text:
    request = client.request(
        prompt, mode=mode, temperature=temperature, seed=5, max_new_tokens=40, logprobs=logprobs, top_logprobs=0
    )
    committed = [event async for event in client.stream(request) if isinstance(event, Committed)]
    remembered = [event for event in committed if isinstance(event.proposal, Remembered)]
    return Text(
        tuple(event.token_id for event in committed),
        overrides=sum(event.replaced is not None for event in committed),
        remembered=len(remembered),
        right=sum(event.replaced is None for event in remembered),
    )


async def all_written(client: EdgeClient, mode: str) -> list[Text]:
    return [await written(client, mode, prompt, temperature) for temperature in TEMPERATURES for prompt in PROMPTS]


def client_of(address: str, *, adapt: bool, planner: Callable[[Mode], Planner] | None = None) -> EdgeClient:
    device = DeviceSettings(threads=1, allow_spinning=False, adapt=adapt)
    return EdgeClient(
        EdgeConfig(pair="tiny", cloud=CloudSettings(address=address), device=device), planner=planner or one_span
    )


def tokens(texts: Sequence[Text]) -> list[tuple[int, ...]]:
    return [text.token_ids for text in texts]


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_exact_stays_the_clouds_text(tiny_pair: Path, target: TorchModel, planner: Callable[[Mode], Planner]) -> None:
    """Also where the memory was taught by all of these texts before, so that most of its entries are used."""

    async def write() -> tuple[list[Text], list[Text], list[Text], list[Text]]:
        async with (
            serving(target, tiny_pair) as (_, address),
            client_of(address, adapt=True, planner=planner) as adapting,
            client_of(address, adapt=False, planner=planner) as plain,
        ):
            first, second = await all_written(adapting, "exact"), await all_written(adapting, "exact")
            return first, second, await all_written(plain, "exact"), await all_written(plain, "cloud")

    first, second, plain, cloud = asyncio.run(write())
    assert tokens(first) == tokens(second) == tokens(plain) == tokens(cloud)
    assert sum(text.remembered for text in plain) == 0


def test_a_repeated_prompt_is_overridden_less_often(tiny_pair: Path, target: TorchModel) -> None:
    async def write() -> tuple[list[Text], list[Text]]:
        async with serving(target, tiny_pair) as (_, address), client_of(address, adapt=True) as client:
            return await all_written(client, "exact"), await all_written(client, "exact")

    first, second = asyncio.run(write())
    assert sum(text.right for text in second) > 0
    assert sum(text.overrides for text in second) < sum(text.overrides for text in first) / 2


def test_only_exact_uses_the_memory_and_teaches_it(tiny_pair: Path, target: TorchModel) -> None:
    """In `gated` and `edge` some tokens are final without the cloud."""

    async def write() -> None:
        async with (
            serving(target, tiny_pair) as (_, address),
            client_of(address, adapt=True) as adapting,
            client_of(address, adapt=False) as plain,
        ):
            for _ in range(2):
                gated = await all_written(adapting, "gated")
            assert sum(text.remembered for text in gated) == 0
            assert sum(text.overrides for text in gated) > 0
            first, second = await all_written(adapting, "exact"), await all_written(adapting, "exact")
            assert sum(text.remembered for text in second) > sum(text.remembered for text in first)
            for mode in ("gated", "edge"):
                assert sum(text.remembered for text in await all_written(adapting, mode)) == 0
            assert tokens(await all_written(adapting, "edge")) == tokens(await all_written(plain, "edge"))

    asyncio.run(write())


def test_log_probabilities_are_of_the_small_models_own_tokens(tiny_pair: Path, target: TorchModel) -> None:
    async def write() -> list[Text]:
        async with serving(target, tiny_pair) as (_, address), client_of(address, adapt=True) as client:
            return [await written(client, "exact", PROMPTS[0], 0.0, logprobs=wanted) for wanted in (False, True, False)]

    plain, measured, again = asyncio.run(write())
    assert plain.token_ids == measured.token_ids == again.token_ids
    assert measured.remembered == 0
    assert measured.overrides > again.overrides
