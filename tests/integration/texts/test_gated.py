"""`gated` against a real server: its dial, learning after the text, and deviations that are reported or retracted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import InvalidRequest
from chaperone_common.session import Audited
from chaperone_common.types import Mode, OnDeviation, Origin
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, EdgeConfig, Generation
from edge_client.config import CloudSettings, DeviceSettings, GateSettings
from edge_client.gate import Totals
from edge_client.generation import Collector
from examples.demo_table import Answer, Difference, Reason, answer_of, difference
from tests.support.processes.servers import serving
from tests.support.waiting import until

PROMPT = "the list of a number is"


def config(address: str, gate: GateSettings, *, closing_audit: bool = False) -> EdgeConfig:
    return EdgeConfig(
        pair="tiny",
        closing_audit=closing_audit,
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=gate,
    )


def test_retracting_makes_gated_equal_exact_and_leaves_edge_unchanged(tiny_pair: Path, target: TorchModel) -> None:
    async def write() -> list[list[Generation]]:
        async with serving(target, tiny_pair) as (_, address):
            texts = []
            for gate in (GateSettings(on_deviation=OnDeviation.RETRACT), GateSettings()):
                async with EdgeClient(config(address, gate, closing_audit=True)) as client:
                    modes = ("gated", "exact", "edge")
                    texts.append([await client.generate(PROMPT, mode=mode, max_new_tokens=40) for mode in modes])
            return texts

    (gated, exact, edge), (_, _, edge_as_ever) = asyncio.run(write())
    assert gated.token_ids == exact.token_ids
    assert gated.stats.skipped_tokens == 0
    assert edge.token_ids == edge_as_ever.token_ids
    assert set(edge.origins) == {Origin.DRAFT}


def test_the_gate_learns_from_audits_after_the_text(tiny_pair: Path, target: TorchModel) -> None:
    async def write() -> tuple[int, Totals]:
        async with (
            serving(target, tiny_pair) as (_, address),
            EdgeClient(config(address, GateSettings(catch=0.3, max_deviation=1.0))) as client,
        ):
            skipped = 0
            for seed in range(4):
                written = await client.generate(PROMPT, mode="gated", temperature=0.8, seed=seed, max_new_tokens=60)
                skipped += written.stats.skipped_tokens
            await until(lambda: client.totals().audited == skipped, "audits of the skipped tokens")
            return skipped, client.totals()

    skipped, totals = asyncio.run(write())
    assert skipped > 0
    assert totals.deviations > 0
    assert totals.caught > 0


def test_each_promise_has_its_own_totals(tiny_pair: Path, target: TorchModel) -> None:
    async def write() -> tuple[Totals, Totals, Totals, Totals]:
        async with (
            serving(target, tiny_pair) as (_, address),
            EdgeClient(config(address, GateSettings(), closing_audit=True)) as client,
        ):
            await client.generate(PROMPT, mode="gated", max_new_tokens=8)
            before = client.totals()
            await client.generate(PROMPT, mode="gated", catch=0.5, max_deviation=0.5, max_new_tokens=16)
            return before, client.totals(), client.totals(catch=0.5, max_deviation=0.5), client.totals(catch=0.7)

    before, default, own, other = asyncio.run(write())
    assert default == before
    assert 0 < default.tokens <= 8
    assert 0 < own.tokens <= 16  # fewer than written, where the cloud took over
    assert other == Totals()


async def answer(client: EdgeClient, mode: Mode, seed: int) -> Answer:
    """Return a text with its audits."""
    request = client.request(PROMPT, mode=mode, temperature=0.8, seed=seed, max_new_tokens=30 + seed)
    collected, audits = Collector(request), list[Audited]()
    async for event in client.stream(request):
        collected.add(event)
        if isinstance(event, Audited):
            audits.append(event)
    return answer_of(collected.result(), audits)


def test_a_text_other_than_the_clouds_reports_a_deviation_at_its_first_other_token(
    tiny_pair: Path, target: TorchModel
) -> None:
    async def write() -> list[Difference | None]:
        found = []
        gates = [GateSettings(), *(GateSettings(policy="threshold", risk=risk) for risk in (0.02, 1.0))]
        async with serving(target, tiny_pair) as (_, address):
            for gate in gates:
                async with EdgeClient(config(address, gate, closing_audit=True)) as client:
                    for seed in range(2):
                        text, reference = [await answer(client, mode, seed) for mode in (Mode.GATED, Mode.CLOUD)]
                        found.append(difference(text, reference))
                        assert (found[-1] is None) == (text.generation.stats.deviations == 0)
        return found

    found = asyncio.run(write())
    assert {difference.reason for difference in found if difference is not None} == {Reason.DEVIATION}
    assert None in found, "some texts are the cloud's own"


def test_in_bfloat16_another_text_is_explained_by_rounding_or_a_deviation(tiny_pair: Path) -> None:
    """The cloud itself may choose another token in mode `cloud`; see Numerics in docs/architecture.md."""
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    target = TorchModel.load(
        tiny_pair / "cloud",
        dtype="bfloat16",
        threads=1,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
    )

    async def write() -> list[tuple[Mode, Reason]]:
        gate = GateSettings(policy="threshold", risk=0.3)
        found = []
        async with (
            serving(target, tiny_pair) as (_, address),
            EdgeClient(config(address, gate, closing_audit=True)) as client,
        ):
            for seed in range(3):
                reference = await answer(client, Mode.CLOUD, seed)
                for mode in (Mode.EXACT, Mode.GATED):
                    other = difference(await answer(client, mode, seed), reference)
                    found += [(mode, other.reason)] if other is not None else []
        return found

    assert {*asyncio.run(write())} <= {
        (Mode.EXACT, Reason.ROUNDING),
        (Mode.GATED, Reason.ROUNDING),
        (Mode.GATED, Reason.DEVIATION),
    }


@pytest.mark.parametrize(("name", "value"), [("catch", 1.5), ("catch", float("nan")), ("max_deviation", -0.1)])
@pytest.mark.usefixtures("tiny_pair")
def test_a_dial_beyond_its_ends_is_refused(name: str, value: float) -> None:
    client = EdgeClient(EdgeConfig(pair="tiny"))
    for wrong, complaint in ((value, "is outside"), ("a", "is not a number")):
        parameters: dict[str, Any] = {name: wrong}
        with pytest.raises(InvalidRequest, match=f"{name}: .* {complaint}"):
            client.request(PROMPT, mode="gated", **parameters)
