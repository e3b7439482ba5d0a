"""A text of `gated` is the cloud-only text, or an audit reports the first token that differs.

Real engine, planner, session and supervisor, over links with delays and resets, in virtual time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from random import Random

from benchmarks.simulation import virtual_time
from benchmarks.simulation.link import SimulatedCloud
from chaperone_common.beams.scoring import Scoring
from chaperone_common.frames import API_VERSION, Capabilities
from chaperone_common.session import Audited, Committed
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import FinishReason, Mode, Origin, SamplingParams, Signal
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.model.ports import ForwardRequest, ForwardResult, Urgency
from cloud_supervisor.supervisor import Supervisor
from edge_client.events import Event
from edge_client.gate import Gate
from edge_client.link.connection import Route
from edge_client.planner import AdaptivePlanner, FixedPlanner, Planner
from link_emulator.model import Link
from link_emulator.profile import Profile, ResetProfile
from tests.support.device.engine import PROMPT, EngineHarness, finished, written
from tests.support.fakes.target import FakeTarget

NEW_TOKENS = 40
EOS = 3


class FakeQueue:
    """A `ForwardQueue` that answers with a fake model, after a time drawn for each forward."""

    def __init__(self, target: FakeTarget, random: Random, slowest_s: float) -> None:
        self._target = target
        self._random = random
        self._slowest_s = slowest_s

    async def forward(
        self,
        key: Hashable,
        tree: TokenTree,
        num_choices: int,
        sampling: SamplingParams,
        *,
        top_logprobs: int | None = None,
        first_reported: int = 0,
        deadline_ms: float | None = None,
        tenant: str = "",
        urgency: Urgency = Urgency.VERIFY,
        encoded: bool = False,
        scoring: Scoring | None = None,
    ) -> ForwardResult:
        await asyncio.sleep(self._random.random() * self._slowest_s)
        request = ForwardRequest(
            self._target.kv_pool.new_cache(), tree, num_choices, sampling, top_logprobs, first_reported
        )
        return ForwardResult(self._target.forward([request])[0], queue_us=0, compute_us=1)

    def free(self, key: Hashable) -> None:
        """Free nothing: every forward reads the whole text."""

    def spare(self, key: Hashable) -> None:
        """Change nothing: nothing is kept."""


@dataclass
class Dice(Gate):
    """A gate that fires at random."""

    random: Random
    share: float

    def fires(self, signal: Signal) -> bool:
        return self.random.random() < self.share


def cloud_text(target: FakeTarget) -> list[int]:
    """Return the text that the cloud writes alone."""
    text = list(PROMPT)
    while len(text) < len(PROMPT) + NEW_TOKENS and text[-1] != EOS:
        text.append(int(target.logits(text).argmax()))
    return text[len(PROMPT) :]


def gated(seed: int) -> list[Event]:
    """Return the events of one generation; `seed` draws models, gate, planner, link and resets."""
    random = Random(seed)
    resets = ResetProfile(at_s=tuple(sorted(random.uniform(0.0, 2.0) for _ in range(random.choice((0, 0, 2))))))
    profile = Profile.fixed(random.choice((0.0, 5.0, 40.0, 300.0))).model_copy(update={"resets": resets})
    limits = LimitsConfig(max_span_tokens=random.choice((3, 256)))
    target = FakeTarget(seed=seed)
    planner: Planner = AdaptivePlanner(Mode.GATED)
    if random.random() < 0.3:
        planner = FixedPlanner(Mode.GATED, random.randint(1, 6), random.randint(1, 3), 20, random.choice((0, 4, 20)))

    async def play() -> list[Event]:
        clock = virtual_time.LoopClock()
        capabilities = Capabilities(API_VERSION, "", "", target.vocabulary_size, 512, limits.max_span_tokens)
        queue = FakeQueue(target, random, random.choice((0.0, 0.02, 0.2)))
        cloud = SimulatedCloud(Supervisor(queue, capabilities, limits, clock), Link(profile, seed))
        harness = EngineHarness(
            mode=Mode.GATED,
            routes=[Route(cloud.link)],
            planner=planner,
            gate=Dice(random, random.choice((0.0, 0.1, 0.3, 0.7))),
            disturbance=random.choice((0.02, 0.1, 0.3, 0.6)),
            branches=random.choice((0, 3)),
            new_tokens=NEW_TOKENS,
            eos=(EOS,),
            clock=clock,
            loop_step_s=random.choice((0.0, 0.01, 0.05)),
            seed=seed,
            closing_audit=True,
            max_span_tokens=limits.max_span_tokens,
            reconnect_timeout_ms=60_000.0,
            open_deadline_ms=60_000.0,
            verification_deadline_ms=60_000.0,
        )
        events = [event async for event in harness.engine.stream()]
        await cloud.close()
        return events

    return virtual_time.run(play())


def check(seed: int, seen: Counter[str]) -> None:
    """Check one generation, and count the cases that it shows."""
    events = gated(seed)
    stats = finished(events).stats
    own, expected = written(events), cloud_text(FakeTarget(seed=seed))
    audits = [event for event in events if isinstance(event, Audited)]
    audited = [position for audit in audits for position in range(audit.start, audit.end)]
    reported = [position for audit in audits for position in audit.deviations]
    lost = stats.audited_tokens < stats.skipped_tokens
    assert stats.audited_tokens == len(audited) == len(set(audited))
    assert stats.deviations == len(reported) == len(set(reported))
    assert stats.deviation_bound == (len(reported) + stats.skipped_tokens - len(audited)) / len(own)
    other = [len(PROMPT) + index for index, (a, b) in enumerate(zip(own, expected, strict=False)) if a != b]
    if lost:  # the connection was reset during the closing audit, which nothing repeats
        reported += [position for position in other[:1] if position not in audited]
    assert other[:1] == sorted(reported)[:1]
    assert other or own == expected
    seen.update(str(event.origin) for event in events if isinstance(event, Committed))
    seen["another text"] += bool(other)
    seen["the cloud's text"] += not other
    seen["a last token that deviates"] += bool(reported) and max(reported) == len(PROMPT) + len(own) - 1
    seen["end of text"] += stats.finish_reason is FinishReason.STOP
    seen["reconnects"] += stats.reconnects > 0
    seen["a lost audit"] += lost


def test_another_text_has_a_deviation_at_its_first_other_token() -> None:
    seen = Counter[str]()
    for seed in range(60):
        check(seed, seen)
    cases = ("another text", "the cloud's text", "a last token that deviates", "end of text", "reconnects")
    origins = (Origin.DRAFT, Origin.VERIFIED, Origin.OVERRIDE, Origin.TAKEOVER)
    assert min(seen[case] for case in (*cases, *map(str, origins))) >= 5, seen
