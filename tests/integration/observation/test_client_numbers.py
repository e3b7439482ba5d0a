"""The metrics of a server are the sums of its clients' statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from chaperone_common.stats import GenerationStats
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient
from tests.support.cloud.metrics import Samples, fetch
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving
from tests.support.waiting import until

PROMPTS = ("def add(a, b):", "import os\n", "class Point:\n    def __init__", "for i in range(")


class Numbers(NamedTuple):
    """The counts of both ends."""

    stats: Sequence[GenerationStats]
    metrics: Samples
    stale_drafts: int  # that the cloud ignored, because they continued a text that it had overridden

    def of_clients(self, *names: str) -> int:
        return sum(getattr(one, name) for one in self.stats for name in names)

    def tokens(self, *kinds: str) -> float:
        return sum(self.metrics("chaperone_tokens_total", kind=kind) for kind in kinds)


def measure(target: TorchModel, pair: Path, *modes: str) -> Numbers:
    """Generate with all prompts in all modes, with closing audits."""

    async def scenario() -> Numbers:
        config = CloudConfig(metrics="127.0.0.1:0")
        async with serving(target, pair, config) as (server, address):
            async with EdgeClient(config_for(address, closing_audit=True)) as client:
                generations = [
                    await client.generate(prompt, raw=True, mode=mode, max_new_tokens=40, temperature=0.7, seed=seed)
                    for mode in modes
                    for seed, prompt in enumerate(PROMPTS)
                ]
            supervisor = server.cloud.supervisor
            await until(lambda: supervisor.sessions == 0, "all streams ended")
            page = await asyncio.to_thread(fetch, server.metrics_address, "/metrics")
            stats = [generation.stats for generation in generations]
            return Numbers(stats, Samples(page), supervisor.counters.stale_frames)

    return asyncio.run(scenario())


@pytest.mark.parametrize("modes", [("exact",), ("gated",), ("cloud",), ("exact", "gated", "cloud")], ids=" ".join)
def test_counts_agree(target: TorchModel, tiny_pair: Path, modes: tuple[str, ...]) -> None:
    both = measure(target, tiny_pair, *modes)
    assert both.metrics("chaperone_streams_total", tenant="anonymous", outcome="closed") == len(both.stats)
    assert both.metrics("chaperone_streams_open") == 0
    assert both.tokens("prompt") == both.of_clients("prompt_tokens")
    assert both.tokens("takeover") == both.of_clients("takeover_tokens")
    assert both.tokens("audited") == both.of_clients("audited_tokens")
    assert both.metrics("chaperone_deviations_total") == both.of_clients("deviations")
    # A token of the cloud's own that the device had drafted already is a verified one there.
    confirmed = both.of_clients("verified_tokens", "overridden_tokens", "bonus_tokens")
    assert both.tokens("accepted", "own") == confirmed
    assert both.tokens("accepted", "own", "takeover") + both.of_clients("skipped_tokens") == both.of_clients(
        "completion_tokens"
    )
    # The cloud verifies no Draft that is stale. Nor does it verify one that waits when the Close arrives, or one that
    # its text answers already: at most one in a text.
    requests = both.of_clients("round_trips", "hidden_round_trips")
    verifications = both.metrics("chaperone_verification_seconds_count") + both.stale_drafts
    assert verifications == pytest.approx(requests, abs=len(both.stats))
