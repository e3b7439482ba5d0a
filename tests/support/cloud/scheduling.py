"""A scheduler on a virtual clock, with caches that are lists of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from chaperone_common.conditioning import Encoding
from chaperone_common.token_tree import BranchToken, TokenTree, common_prefix
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.model.ports import ForwardResult, Urgency
from cloud_supervisor.scheduling.batch import Answer, Chunk, QueuedRequest
from cloud_supervisor.scheduling.scheduler import Outcome, Scheduler

SAMPLING = SamplingParams()


class Caches:
    """The cached tokens of each session."""

    def __init__(self, capacity_tokens: int = 1_000_000) -> None:
        self.capacity_tokens = capacity_tokens
        self.texts: dict[Hashable, tuple[int, ...]] = {}

    def held(self, key: Hashable, token_ids: Sequence[int], tenant: str = "") -> int | None:
        return common_prefix(self.texts[key], tuple(token_ids)) if key in self.texts else None


class Bench:
    """A scheduler, caches, and a clock that moves by `forward_s` in each forward, or by what `cost_s` says."""

    def __init__(
        self,
        *,
        max_queue: int = 8,
        step_tokens: int | None = None,
        step_requests: int = 256,
        chunk_tokens: int = 4,
        context_tokens: int = 100,
        capacity_tokens: int = 1_000_000,
        prefill_s: float = math.inf,
        cost_s: Callable[[Sequence[Chunk]], float] | None = None,
    ) -> None:
        self.scheduler = Scheduler(
            max_queue=max_queue,
            step_tokens=step_tokens or chunk_tokens,
            step_requests=step_requests,
            chunk_tokens=chunk_tokens,
            context_tokens=context_tokens,
            prefill_s=prefill_s,
        )
        self.caches = Caches(capacity_tokens)
        self.now = 100.0
        self.released: list[Hashable] = []
        self.forward_s = 0.25
        self._cost_s = cost_s
        self.submitted: list[QueuedRequest] = []
        self.answers: list[Answer] = []
        self.chunks: list[Chunk] = []  # chunks that ran
        self.steps: list[list[Chunk]] = []  # the same, by forward

    def submit(
        self,
        key: str,
        tokens: int,
        num_choices: int = 1,
        *,
        branches: Sequence[tuple[int, int]] = (),
        deadline_ms: float | None = None,
        tenant: str = "",
        urgency: Urgency = Urgency.VERIFY,
        encoded: bool = False,
    ) -> QueuedRequest:
        """Add a request for the text 0, 1, 2, ..., and return it."""
        tree = TokenTree(tuple(range(tokens)), tuple(BranchToken(*branch) for branch in branches))
        deadline_at = None if deadline_ms is None else self.now + deadline_ms / 1e3
        request = QueuedRequest(key, tree, num_choices, SAMPLING, deadline_at, tenant, urgency, encoded=encoded)
        self.scheduler.submit(request, self.now)
        self.submitted.append(request)
        return request

    @property
    def waiting(self) -> list[QueuedRequest]:
        """The requests that were not answered yet."""
        answered = {answer.request for answer in self.answers}
        return [request for request in self.submitted if request not in answered]

    def start(self) -> list[Chunk]:
        """Schedule, and return the chunks that run now."""
        batch, answers = self.scheduler.schedule(self.caches, self.now)
        self.released += self.scheduler.released()
        self.answers += answers
        return [*batch.chunks] if batch is not None else []

    def finish(self, chunks: Sequence[Chunk], error: Exception | None = None) -> None:
        """Complete the running batch, with choices, or scales of rows, that equal their positions."""
        forward_s = self._cost_s(chunks) if self._cost_s else self.forward_s
        self.now += forward_s
        outcomes: list[Outcome] = []
        for chunk in chunks:
            last = chunk.end == chunk.request.tree.end
            count = chunk.num_choices + (len(chunk.request.tree.branches) if last else 0)
            positions = [*range(chunk.end - count, chunk.end)]
            found: Outcome = [Choice(position, 0.0, 0) for position in positions]
            if chunk.request.encoded:
                found = Encoding(np.array(positions, np.float32), np.zeros((count, 1), np.int8), chunk.end - count)
            outcomes.append(error or found)
            self.caches.texts[chunk.request.key] = chunk.request.tree.token_ids[: chunk.end]
        self.chunks += chunks
        self.steps.append([*chunks])
        self.answers += self.scheduler.complete(outcomes, forward_s, self.now)

    def step(self) -> bool:
        """Run one batch; return False if no request waits."""
        chunks = self.start()
        if chunks:
            self.finish(chunks)
        return bool(chunks)

    def run(self) -> list[str]:
        """Run until no request waits, and return the sessions in the order of their chunks."""
        while self.step():
            pass
        return [str(chunk.request.key) for chunk in self.chunks]

    def outcome(self, request: QueuedRequest) -> ForwardResult | BaseException:
        [outcome] = [answer.outcome for answer in self.answers if answer.request is request]
        return outcome
