"""The cloud's model in virtual time, under the real supervisor."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Mapping
from random import Random

from benchmarks.simulation.costs import CloudCosts
from benchmarks.simulation.script import CONTEXT_TOKENS, TOKENIZER_DIGEST, VOCABULARY_SIZE, ScriptedModels
from benchmarks.simulation.virtual_time import LoopClock
from chaperone_common.beams.scoring import Scoring
from chaperone_common.errors import CloudTimeout
from chaperone_common.frames import API_VERSION, Capabilities
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Choice, SamplingParams, SessionId
from cloud_supervisor.admission import SessionKey
from cloud_supervisor.caller import LOCAL
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.model.ports import ForwardResult, Urgency
from cloud_supervisor.supervisor import Supervisor


class SimulatedQueue:
    """A `ForwardQueue` that chooses what each session's models write, one request after the other.

    A session's cache holds the tree of its last forward. A prompt is read in chunks, and the other devices get their
    turn between them. A request whose stream ends is computed nevertheless; the real runner drops one that waits.

    It is not the service's `Scheduler`. A conversation has one request at a time, so with one device there is nothing
    to order or to batch, and the costs are those of one text. Others are a stream of given load (`BackgroundLoad`), not
    requests. The fleet (`benchmarks/fleet/replica.py`), where devices meet, runs the scheduler itself.
    """

    def __init__(
        self, all_models: Mapping[Hashable, ScriptedModels], costs: CloudCosts, *, chunk_tokens: int = 256
    ) -> None:
        self._models = all_models
        self._costs = costs
        self._chunk_tokens = chunk_tokens
        self._background = BackgroundLoad(costs)
        self._held: dict[Hashable, TokenTree] = {}
        self._busy_until_s = 0.0

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
        """Return what the models write, after the time that the requests before it and this one take."""
        if scoring is not None:
            raise ValueError("scoring: traces hold choices, and no scores of other tokens")
        ends = [*range(0, tree.end, self._chunk_tokens)][1:] if not num_choices else []
        parts = [await self._compute(key, tree.piece(0, end), num_choices, deadline_ms) for end in (*ends, tree.end)]
        queue_us, compute_us = sum(part.queue_us for part in parts), sum(part.compute_us for part in parts)
        return ForwardResult(parts[-1].choices, queue_us, compute_us)

    async def _compute(
        self, key: Hashable, tree: TokenTree, num_choices: int, deadline_ms: float | None
    ) -> ForwardResult:
        now_s = asyncio.get_running_loop().time()
        start_s = max(now_s, self._background.done_s(now_s, self._busy_until_s))
        queue_ms = (start_s - now_s) * 1e3
        if deadline_ms is not None and queue_ms >= deadline_ms:
            await asyncio.sleep(deadline_ms / 1e3)
            raise CloudTimeout(f"deadline: the request waited {deadline_ms:.0f} ms in the queue and was not started")
        compute_ms = self._compute_ms(key, tree, num_choices)
        self._busy_until_s = start_s + compute_ms / 1e3
        self._held[key] = tree
        wanted = [(tree.token_ids, num_choices), *((path, 1) for path in tree.paths())]
        models = self._models[key]
        for text, count in wanted:
            models.expect_choices(text, count)
        await asyncio.sleep(self._busy_until_s - now_s)
        chosen = [choice for text, count in wanted for choice in models.choices(text, count)]
        answers = [Choice(token_id, 0.0, token_id) for token_id in chosen]
        return ForwardResult(answers, queue_us=round(queue_ms * 1e3), compute_us=round(compute_ms * 1e3))

    def free(self, key: Hashable) -> None:
        self._held.pop(key, None)

    def spare(self, key: Hashable) -> None:
        """Change nothing: there is no budget."""

    def _compute_ms(self, key: Hashable, tree: TokenTree, num_choices: int) -> float:
        """Return the price of the tokens that the cache lacks, and always of those whose choices are wanted."""
        length, indices = self._held.get(key, TokenTree(())).longest_path(tree.token_ids[: tree.end - num_choices])
        new = tree.size - length - len(indices)
        return self._costs.read_ms.at(new) if num_choices else self._costs.prefill_ms * new


class BackgroundLoad:
    """Requests of other devices in the same queue."""

    def __init__(self, costs: CloudCosts) -> None:
        if not 0 <= costs.load < 1:
            raise ValueError(f"load: {costs.load} is outside [0, 1); a queue that others fill never gets shorter")
        self._dice = Random(costs.seed)
        self._each_s = costs.other_ms / 1e3
        self._rate = costs.load / self._each_s  # per second
        self._next_s = self._interval_s()

    def done_s(self, now_s: float, busy_until_s: float) -> float:
        """Return the end of all requests that have arrived by now, if the others end at `busy_until_s`."""
        while self._next_s <= now_s:
            busy_until_s = max(busy_until_s, self._next_s) + self._each_s
            self._next_s += self._interval_s()
        return busy_until_s

    def _interval_s(self) -> float:
        return self._dice.expovariate(self._rate) if self._rate else math.inf


def capabilities(limits: LimitsConfig) -> Capabilities:
    """Return the capabilities of a simulated cloud."""
    return Capabilities(
        API_VERSION, "simulated", TOKENIZER_DIGEST, VOCABULARY_SIZE, CONTEXT_TOKENS, limits.max_span_tokens
    )


def simulated_supervisor(all_models: Mapping[SessionId, ScriptedModels], costs: CloudCosts) -> Supervisor:
    """Return the real supervisor over a queue that plays each session's models; call it inside a virtual loop."""
    limits = LimitsConfig()
    keyed: dict[Hashable, ScriptedModels]
    keyed = {SessionKey(LOCAL.tenant, session_id): models for session_id, models in all_models.items()}
    queue = SimulatedQueue(keyed, costs, chunk_tokens=limits.prefill_chunk_tokens)
    return Supervisor(queue, capabilities(limits), limits, LoopClock())
