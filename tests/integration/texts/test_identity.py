"""The central promise: `exact` is the cloud-only stream, token for token, for any device, span and link.

Three writers are compared on every request: `exact`, `cloud`, and an oracle that shares no code with either.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.session import Committed, Retracted
from chaperone_common.types import Origin
from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import DeviceSettings, PlannerSettings
from edge_client.generation import Collector, GenerationRequest
from tests.support.fakes.recording_cloud import RecordingCloud
from tests.support.models import oracle
from tests.support.processes.servers import serving

# A multiple of 15, since filter, temperature and client follow from the number modulo 15. The test over links compares
# 200 more.
GENERATIONS = 150
CONCURRENT = 6
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.9},
    {"top_k": 20},
    {"min_p": 0.05},
    {"top_p": 0.8, "top_k": 40, "min_p": 0.02},
)
PLANNERS = (
    PlannerSettings(policy="fixed", span_tokens=1, spans_in_flight=1, run_ahead_tokens=4),
    PlannerSettings(policy="fixed", span_tokens=3, spans_in_flight=3, run_ahead_tokens=24),
    PlannerSettings(policy="fixed", span_tokens=8, spans_in_flight=2, run_ahead_tokens=32),
    PlannerSettings(policy="fixed", span_tokens=4, spans_in_flight=4, run_ahead_tokens=32, takeover_tokens=5),
    PlannerSettings(policy="fixed", span_tokens=16, spans_in_flight=2, run_ahead_tokens=64),
)
# Encodings of prompts and a memory of corrections change no text either.
PLAIN = DeviceSettings(threads=1, allow_spinning=False)
DEVICES = tuple(
    PLAIN.model_copy(update={"conditioning": conditioning, "adapt": adapt})
    for conditioning, adapt in (("auto", False), ("on", False), ("auto", True), ("on", True), ("on", False))
)
STOPS = ((), (), ("e",), ("in", "self"), ("th", "\n"))
DELAYS_MS = (0.0, 2.0, 10.0)
WORDS = (
    *("the", "list", "of", "a", "number", "is", "sorted", "and", "returned", "by", "def", "class", "import"),
    *("value", "in", "python", "where", "each", "one", "sums"),
)


def requests(random: Random) -> list[dict[str, Any]]:
    """Return random requests in which all pairs of settings occur often enough."""
    return [
        {
            "prompt": " ".join(random.choices(WORDS, k=random.randint(1, 30))),
            "temperature": (0.0, 0.7, 1.0)[index % 3],
            **FILTERS[index // 3 % len(FILTERS)],
            "stop": STOPS[random.randrange(len(STOPS))],
            "seed": random.choice((index, 2**64 - 1 - index)),
            "max_new_tokens": random.randint(1, 48),
        }
        for index in range(GENERATIONS)
    ]


@pytest.mark.timeout(400)
def test_exact_equals_cloud_equals_oracle(tiny_pair: Path) -> None:
    seen = asyncio.run(_compare(tiny_pair))
    for happening in (
        "override at the first position",
        "override at the middle position",
        "override at the last position",
        "bonus that the run-ahead draft missed",
        "end-of-text inside a span",
        "two or more spans in flight",
        "stale frame",
        "eviction",
        "hand-back",
        "stop string",
    ):
        assert seen[happening] >= 10, f"{happening}: only {seen[happening]} of the ten that the test must exercise"


async def _compare(pair: Path) -> Counter[str]:
    manifest = load_manifest(pair / "cloud", role="cloud")
    model = TorchModel.of_manifest(pair / "cloud", manifest, dtype="float32", threads=1)
    reference = oracle.load(pair / "cloud")
    seen: Counter[str] = Counter()
    random = Random(20)
    # Room for about three sessions, so that evictions are frequent.
    budget_mib = 3 * 100 * model.kv_bytes_per_token / 2**20
    async with AsyncExitStack() as stack:
        server, address = await stack.enter_async_context(
            serving(
                model,
                pair,
                CloudConfig(kv_budget_mib=budget_mib, dtype="float32", limits=LimitsConfig(kv_overcommit=100)),
            )
        )
        clients = [
            await stack.enter_async_context(
                EdgeClient(
                    EdgeConfig(pair="tiny", planner=planner, device=device),
                    cloud=RecordingCloud(address, delay_ms=delay_ms, random=random, seen=seen),
                )
            )
            for planner, device in zip(PLANNERS, DEVICES, strict=True)
            for delay_ms in DELAYS_MS
        ]
        turn = asyncio.Semaphore(CONCURRENT)

        async def compare(index: int, parameters: dict[str, Any]) -> None:
            async with turn:
                await _compare_one(clients[index % len(clients)], reference, parameters, seen)

        await asyncio.gather(*(compare(*item) for item in enumerate(requests(random))))
        seen["stale frame"] = server.cloud.supervisor.counters.stale_frames
        seen["eviction"] = server.cloud.runner.kv_stats.evictions
        inside = sum(count for happening, count in seen.items() if happening.startswith("override at"))
        seen["bonus that the run-ahead draft missed"] = seen["draft that gave way"] - inside
        assert server.cloud.supervisor.counters.refused == 0
    return seen


async def _compare_one(client: EdgeClient, reference: Any, parameters: dict[str, Any], seen: Counter[str]) -> None:
    exact = client.request(**parameters, mode="exact")
    cloud = client.request(**parameters, mode="cloud")
    results = []
    for request in (exact, cloud):
        collected = await _collect(client, request, seen)
        result = collected.result()
        results.append((list(result.token_ids), result.text, str(result.finish_reason)))
    expected = await asyncio.to_thread(
        oracle.confirm,
        reference,
        exact.prompt.token_ids,
        results[0][0],
        vocabulary_size=client.manifest.vocabulary_size,
        eos_token_ids=client.manifest.eos_token_ids,
        decode=client.tokenizer.decode,
        **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, **{key: parameters[key] for key in parameters if key != "prompt"}},
    )
    assert results[0] == expected, f"exact differs from the oracle: {parameters}"
    assert results[1] == expected, f"cloud differs from the oracle: {parameters}"
    seen["stop string"] += expected[2] == "stop" and expected[0][-1] not in client.manifest.eos_token_ids


async def _collect(client: EdgeClient, request: GenerationRequest, seen: Counter[str]) -> Collector:
    collected = Collector(request)
    retracted_at: int | None = None
    async for event in client.stream(request):
        collected.add(event)
        if isinstance(event, Committed) and event.origin is Origin.OVERRIDE and event.position == retracted_at:
            seen["draft that gave way"] += 1
        retracted_at = event.position if isinstance(event, Retracted) else None
    return collected
