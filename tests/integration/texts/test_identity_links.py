"""The central promise over the link emulator: `exact` is the cloud-only stream over any link.

Device and server speak real gRPC over every profile of `configs/links`. Connections are reset and outages happen at
random moments. `exact` must equal `cloud` over the same link. Every token of `exact` must be the oracle's choice after
the tokens before it, so the whole text is the oracle's. In `gated`, the oracle's choices show the deviations.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chaperone_common.stats import GenerationStats
from chaperone_common.types import Choice, Origin
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.kv.slots import SlotPool
from cloud_supervisor.model.ports import ForwardRequest, Found, only_choices
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient
from edge_client.events import Event, Planned
from edge_client.generation import Collector, GenerationRequest
from edge_client.planner import CatchUp, Decision, DraftForest, DraftToken, HandOver, Send, Wait
from link_emulator import LinkProxy, Profile
from link_emulator.profile import (
    DirectionProfile,
    OutageProfile,
    PeriodicOutages,
    RandomOutages,
    ResetProfile,
    load_profile,
    profile_names,
)
from tests.integration.texts.test_identity import WORDS
from tests.support.models import oracle
from tests.support.processes.clients import config_for, ending_of
from tests.support.processes.servers import serving

RUNS = 200
GATED_EVERY = 4  # every fourth run is repeated in `gated`
LEAST_TOKENS, MOST_TOKENS = 8, 20
RISK = 0.65  # at which `gated` asks
RUN_S = 120.0  # a run that takes longer has hung
FORWARD_S = 0.015  # of the large model, at least
SAMPLING: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9})
FAULTS: tuple[tuple[str, ...], ...] = ((), ("reset",), ("outage",), ("reset", "outage"), ("reset", "reset", "outage"))

# Profiles are hurried so that the runs take seconds. Rates and losses stay, and the test itself resets connections.
LONGEST_RTT_MS = 40.0  # longer round trips are shrunk to it, and their jitter with them
HASTE = 40.0  # outages come this many times as often, and are this many times shorter


def hurried(profile: Profile) -> Profile:
    scale = min(1.0, LONGEST_RTT_MS / profile.rtt_ms) if profile.rtt_ms else 1.0

    def way(direction: DirectionProfile) -> DirectionProfile:
        return direction.model_copy(
            update={"delay_ms": direction.delay_ms * scale, "jitter_ms": direction.jitter_ms * scale}
        )

    periodic, random = profile.outages.periodic, profile.outages.random
    outages = OutageProfile(
        periodic=periodic and PeriodicOutages(every_s=periodic.every_s / HASTE, lasts_s=periodic.lasts_s / HASTE),
        random=random
        and RandomOutages(
            mean_interval_s=random.mean_interval_s / HASTE, mean_lasts_s=max(0.001, random.mean_lasts_s / HASTE)
        ),
    )
    return profile.model_copy(
        update={"up": way(profile.up), "down": way(profile.down), "outages": outages, "resets": ResetProfile()}
    )


class SlowTarget:
    """A `TargetModel` whose forwards take as long as a large model's, since a device would not draft for a tiny one.

    Several servers share the model, one forward after the other. Their delays run in parallel.
    """

    def __init__(self, model: TorchModel, turn: threading.Lock) -> None:
        self._model = model
        self._turn = turn

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    @property
    def encodes(self) -> bool:
        return self._model.encodes

    @property
    def kv_bytes_per_token(self) -> int:
        return self._model.kv_bytes_per_token

    @property
    def kv_pool(self) -> SlotPool:
        return self._model.kv_pool

    def step(self, requests: Sequence[ForwardRequest]) -> list[Found]:
        time.sleep(FORWARD_S)
        with self._turn:
            return self._model.step(requests)

    def forward(self, requests: Sequence[ForwardRequest]) -> list[list[Choice]]:
        return only_choices(self.step(requests))


@dataclass
class Lane:
    """One link with its server and its clients, which run one after the other."""

    profile: str
    proxy: LinkProxy
    server: Server
    exact: EdgeClient
    gated: EdgeClient
    note: Callable[[Decision], None]  # counts the decisions of `exact`


@dataclass
class Faults:
    """The faults of one generation, at moments counted in its events."""

    proxy: LinkProxy
    random: Random
    kinds: Sequence[str]
    hits: Counter[str] = field(default_factory=Counter)
    _due: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    _timers: list[asyncio.TimerHandle] = field(default_factory=list)
    _outage_ends_s: float = float("inf")
    _resets: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            act = self._reset if kind == "reset" else partial(self._outage, self.random.uniform(0.1, 0.3))
            self._due.setdefault(self.random.randint(1, MOST_TOKENS), []).append(act)

    def follow(self, number: int) -> None:
        """Trigger the faults of this event; some wait a little, so that not all of them hit a busy device."""
        for act in self._due.pop(number, ()):
            delay_s = self.random.choice((0.0, self.random.uniform(0.0, 0.03)))
            self._timers.append(asyncio.get_running_loop().call_later(delay_s, act))

    def end(self, stats: GenerationStats) -> None:
        """End the faults after the generation, and record those that hit it."""
        for timer in self._timers:
            timer.cancel()
        self.hits["reset"] = int(self._resets > 0 and stats.reconnects > 0)
        self.hits["outage"] = int(asyncio.get_running_loop().time() > self._outage_ends_s)

    def _reset(self) -> None:
        self._resets += self.proxy.reset()

    def _outage(self, seconds: float) -> None:
        self._outage_ends_s = asyncio.get_running_loop().time() + seconds
        self.proxy.outage(seconds)


@asynccontextmanager
async def lane(
    profile: str, model: TorchModel, turn: threading.Lock, pair: Path, seen: Counter[str]
) -> AsyncIterator[Lane]:
    def note(decision: Decision) -> None:
        match decision.action:
            case DraftToken(branches=branches):
                seen["branch"] += bool(branches)
            case Send(continuation_tokens=tokens):
                seen["span"] += 1
                seen["invitation to write on"] += tokens > 0
            case HandOver():
                seen["hand-over"] += 1
            case CatchUp():
                seen["catch-up"] += 1
            case Wait() | DraftForest():
                pass

    config = CloudConfig(dtype="float32")
    async with (
        serving(SlowTarget(model, turn), pair, config, reconnect_grace_s=30.0) as (server, address),
        LinkProxy(hurried(load_profile(profile)), to=address, seed=profile_names().index(profile)) as proxy,
        EdgeClient(config_for(proxy.address)) as exact,
        EdgeClient(config_for(proxy.address, risk=RISK, closing_audit=True)) as gated,
    ):
        yield Lane(profile, proxy, server, exact, gated, note)
        seen["stale frame"] += server.cloud.supervisor.counters.stale_frames
        seen["take-back"] += server.cloud.supervisor.counters.hand_backs
        seen["refused"] += server.cloud.supervisor.counters.refused


@pytest.mark.timeout(400)
def test_exact_equals_cloud_equals_oracle_over_every_link(tiny_pair: Path, target: TorchModel) -> None:
    seen = asyncio.run(_compare(tiny_pair, target))
    print(dict(seen))
    assert all(seen[f"over {profile}"] >= RUNS // len(profile_names()) for profile in profile_names())
    assert seen["runs"] == RUNS
    assert seen["hit by a reset"] >= 30
    assert seen["hit by an outage"] >= 30
    assert seen["gated"] == RUNS // GATED_EVERY
    for happening in (
        "span",
        "branch",
        "stale frame",
        "override",
        "gated, hit by a reset",
        "gated, hit by an outage",
        "gated, all audited",
        "deviation",
    ):
        assert seen[happening] >= 10, f"{happening}: only {seen[happening]} of the ten that the test must exercise"


async def _compare(pair: Path, model: TorchModel) -> Counter[str]:
    reference = oracle.load(pair / "cloud")
    seen: Counter[str] = Counter()
    names, turn = profile_names(), threading.Lock()
    async with AsyncExitStack() as stack:
        lanes = [await stack.enter_async_context(lane(name, model, turn, pair, seen)) for name in names]

        async def runs_of(index: int) -> None:
            for seed in range(index, RUNS, len(lanes)):
                try:
                    async with asyncio.timeout(RUN_S):
                        await _run(lanes[index], reference, seed, seen)
                except Exception as error:
                    error.add_note(f"run of seed {seed}, over {names[index]}")
                    raise

        async with asyncio.TaskGroup() as group:
            for index in range(len(lanes)):
                group.create_task(runs_of(index))
    return seen


async def _run(lane: Lane, reference: Any, seed: int, seen: Counter[str]) -> None:
    """Compare one text in `exact` with faults, in `cloud` without, and by the oracle; check some in `gated`, too."""
    random = Random(seed)
    round_number = seed // len(profile_names())
    parameters: dict[str, Any] = {
        "prompt": " ".join(random.choices(WORDS, k=random.randint(1, 20))),
        **SAMPLING[round_number % len(SAMPLING)],
        "seed": random.getrandbits(64),
        "max_new_tokens": random.randint(LEAST_TOKENS, MOST_TOKENS),
    }
    kinds = FAULTS[seed % len(FAULTS)]
    request = lane.exact.request(**parameters, mode="exact")
    exact, hits = await _collect(lane.exact, request, Faults(lane.proxy, random, kinds), lane.note)
    cloud, _ = await _collect(
        lane.exact, lane.exact.request(**parameters, mode="cloud"), Faults(lane.proxy, random, ()), lane.note
    )
    details = f"seed {seed}, {kinds}, {parameters}"
    result = exact.result()
    choices = await _choices(lane.exact, reference, request, result.token_ids)
    assert list(result.token_ids) == choices, f"exact differs from the oracle: {details}"
    ended = result.token_ids[-1] in lane.exact.manifest.eos_token_ids
    assert ended or len(result.token_ids) == parameters["max_new_tokens"], details
    assert result.text == lane.exact.tokenizer.decode([*result.token_ids]), details
    assert str(result.finish_reason) == ("stop" if ended else "length"), details
    same = cloud.result()
    assert (same.token_ids, same.text, same.finish_reason) == (result.token_ids, result.text, result.finish_reason), (
        f"cloud differs from exact: {details}"
    )
    seen["runs"] += 1
    seen[f"over {lane.profile}"] += 1
    seen["hit by a reset"] += hits["reset"]
    seen["hit by an outage"] += hits["outage"]
    seen["override"] += exact.origins.count(Origin.OVERRIDE)
    seen["takeover"] += exact.origins.count(Origin.TAKEOVER)
    if seed % GATED_EVERY == 0:
        await _check_gated(lane, reference, parameters, Faults(lane.proxy, random, kinds), seen)


async def _check_gated(
    lane: Lane, reference: Any, parameters: dict[str, Any], faults: Faults, seen: Counter[str]
) -> None:
    """Check the ledger of `gated`: skipped tokens are audited once, and the oracle finds the same deviations."""
    request = lane.gated.request(**parameters, mode="gated")
    resets = lane.proxy.resets
    collected, hits = await _collect(lane.gated, request, faults)
    result = collected.result()
    stats = result.stats
    choices = await _choices(lane.gated, reference, request, result.token_ids)
    deviating = [ours != clouds for ours, clouds in zip(result.token_ids, choices, strict=True)]
    skipped = [origin is Origin.DRAFT for origin in result.origins]
    details = f"{parameters}: {stats}"
    assert all(skip for skip, deviates in zip(skipped, deviating, strict=True) if deviates), details
    assert stats.skipped_tokens == sum(skipped), details
    assert stats.unverified_tokens == 0, details
    audited = stats.audited_tokens == stats.skipped_tokens
    if audited:
        assert stats.deviations == sum(deviating), details
    else:  # a reset after the last answer that the device waited for lost the closing audit
        assert lane.proxy.resets > resets, details
        assert stats.audited_tokens < stats.skipped_tokens, details
        assert stats.deviations <= sum(deviating) <= stats.deviation_bound * stats.completion_tokens, details
    seen["gated"] += 1
    seen["gated, all audited"] += audited
    seen["gated, hit by a reset"] += hits["reset"]
    seen["gated, hit by an outage"] += hits["outage"]
    seen["deviation"] += sum(deviating)


async def _choices(
    client: EdgeClient, reference: Any, request: GenerationRequest, token_ids: Sequence[int]
) -> list[int]:
    """Return the oracle's choice at each position of a given text, after the tokens before it."""
    return await asyncio.to_thread(
        oracle.choices,
        reference,
        request.prompt.token_ids,
        token_ids,
        vocabulary_size=client.manifest.vocabulary_size,
        **asdict(request.params.sampling),
    )


async def _collect(
    client: EdgeClient,
    request: GenerationRequest,
    faults: Faults,
    note: Callable[[Decision], None] = lambda _: None,
) -> tuple[Collector, Counter[str]]:
    collected = Collector(request)
    events: list[Event] = []
    async for event in client.stream(request, explain=True):
        if isinstance(event, Planned):
            note(event.decision)
            continue
        events.append(event)
        collected.add(event)
        faults.follow(len(events))
    ending = ending_of(events)
    faults.end(ending.stats)
    return collected, faults.hits
