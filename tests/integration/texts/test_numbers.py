"""`GenerationStats` adds up, and the audit finds all deviations that the large model itself counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NoReturn

import pytest

from chaperone_common.errors import ConfigError
from chaperone_common.session import Committed, Retracted
from chaperone_common.types import Mode
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient
from edge_client.config import CloudSettings, PlannerSettings
from edge_client.generation import Collector
from edge_client.ports import Metadata
from tests.support.cloud.forward import feeding
from tests.support.processes.clients import config_for, run

PROMPT = "the list of a number is"


@pytest.mark.parametrize(
    "planner", [PlannerSettings(), PlannerSettings(policy="fixed", span_tokens=3, takeover_tokens=4)]
)
@pytest.mark.parametrize("mode", Mode)
def test_the_numbers_add_up(tiny_pair: Path, target: TorchModel, mode: Mode, planner: PlannerSettings) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        for seed in range(3):
            result = await client.generate(PROMPT, mode=mode, temperature=1.0, seed=seed, max_new_tokens=50)
            stats = result.stats
            assert stats.prompt_tokens == len(result.prompt_token_ids)
            assert stats.completion_tokens == len(result.token_ids) <= 50
            assert stats.completion_tokens == (
                stats.verified_tokens
                + stats.skipped_tokens
                + stats.overridden_tokens
                + stats.bonus_tokens
                + stats.takeover_tokens
                + stats.unverified_tokens
            )
            assert stats.finish_reason is result.finish_reason
            assert 0 < (stats.ttft_ms or 0) <= (stats.ttft_committed_ms or 0) <= stats.total_ms
            assert stats.decode_ms is None
            assert stats.round_trips >= 0
            assert stats.hidden_round_trips >= 0
            assert 0 <= stats.deviation_bound <= 1
            assert stats.energy_j > 0
            on_the_link = (stats.bytes_up, stats.bytes_down, stats.cloud_compute_ms)
            if mode is Mode.EDGE:
                assert on_the_link == (0, 0, 0)
                assert stats.skipped_tokens == stats.completion_tokens
                assert stats.fired == 0
            elif mode is Mode.CONDITIONED and seed:  # the prompt's encoding is here already
                assert on_the_link == (0, 0, 0)
            else:
                assert min(on_the_link) > 0
            if mode is Mode.EXACT:
                assert stats.skipped_tokens == stats.deviations == 0
                assert stats.fired >= stats.verified_tokens
            if mode is Mode.CLOUD:
                assert stats.edge_compute_ms == 0
                assert stats.takeover_tokens == stats.completion_tokens - 1

    run(target, tiny_pair, scenario, planner=planner)


class Unreachable:
    """A cloud that must receive no request."""

    @property
    def connected(self) -> NoReturn:
        raise AssertionError("edge mode asked for the connection")

    async def capabilities(self, timeout_ms: float) -> NoReturn:
        raise AssertionError("edge mode asked for capabilities")

    def link(self, metadata: Metadata = ()) -> NoReturn:
        raise AssertionError("edge mode opened a stream")

    async def close(self) -> None:
        pass


def test_edge_mode_sends_nothing(tiny_pair: Path) -> None:
    async def play() -> None:
        async with EdgeClient(config_for("127.0.0.1:1"), cloud=Unreachable()) as client:
            result = await client.generate(PROMPT, mode="edge", max_new_tokens=10)
        assert (result.stats.bytes_up, result.stats.bytes_down) == (0, 0)
        async with EdgeClient(config_for("cloud.example.com:443")) as client:  # never resolved
            assert (await client.generate(PROMPT, mode="edge", max_new_tokens=10)).token_ids == result.token_ids

    asyncio.run(play())


def test_an_address_elsewhere_is_refused_without_tls(tiny_pair: Path) -> None:
    async def play(address: str) -> None:
        async with EdgeClient(config_for(address, cloud=CloudSettings(tls=False))) as client:
            await client.generate(PROMPT)

    for address in ("cloud.example.com:443", "127.0.0.1.example.com:443", "10.0.0.1:50151"):
        with pytest.raises(ConfigError, match=r"cloud\.tls: false, but .* is not on this machine") as caught:
            asyncio.run(play(address))
        assert repr(address) in caught.value.message
    with pytest.raises(ConfigError, match=r"cloud\.address: '127\.0\.0\.1': there is no port"):
        asyncio.run(play("127.0.0.1"))


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud", "edge"])
def test_a_warm_start_measures_decoding_alone(tiny_pair: Path, target: TorchModel, mode: str) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        cold = await client.generate(PROMPT, mode=mode, max_new_tokens=30)
        warm = await client.generate(PROMPT, mode=mode, max_new_tokens=30, warm_start=True)
        assert warm.token_ids == cold.token_ids
        assert cold.stats.decode_ms is None
        assert warm.stats.decode_ms is not None
        assert 0 < warm.stats.decode_ms < warm.stats.total_ms

    run(target, tiny_pair, scenario, risk=0.0)


@pytest.mark.parametrize("risk", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_closing_audit_makes_deviations_complete(
    tiny_pair: Path, target: TorchModel, risk: float, temperature: float
) -> None:
    async def scenario(client: EdgeClient, server: Server) -> int:
        total = 0
        for seed in range(4):
            request = client.request(
                PROMPT, mode="gated", temperature=temperature, top_p=0.95, seed=seed, max_new_tokens=50 + seed
            )
            collected, caught, replaced = Collector(request), 0, 0
            async for event in client.stream(request):
                collected.add(event)
                caught += isinstance(event, Retracted)  # the cloud's token replaced a draft token
                replaced += isinstance(event, Committed) and event.replaced is not None
            result = collected.result()
            text = [*result.prompt_token_ids, *result.token_ids]
            count = len(result.token_ids)
            reading = feeding(target.kv_pool.new_cache(), text[:-1], count, request.params.sampling)
            choices = [choice.token_id for choice in target.forward([reading])[0]]
            deviations = sum(own != choice for own, choice in zip(result.token_ids, choices, strict=True))
            assert result.stats.deviations == deviations
            assert result.stats.audited_tokens >= result.stats.skipped_tokens
            assert result.stats.deviation_bound == deviations / count
            assert caught == replaced, "an override of a branch token replaces no draft of the text"
            assert result.stats.catch == (caught / (caught + deviations) if caught + deviations else None)
            total += deviations
        return total

    total = run(target, tiny_pair, scenario, risk=risk, closing_audit=True)
    if risk == 0.0:
        assert total == 0, "every token was verified"
    elif risk == 1.0:
        assert total > 0, "the models differ, and no token was verified"
