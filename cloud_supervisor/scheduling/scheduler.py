"""The order in which requests reach the model, as a pure state machine.

It receives requests and a view of the KV store, returns batches, and then receives their outcomes. It has no threads,
futures or clock: `now` is an argument, in seconds.

A long request is computed in chunks: a prompt, a conversation that was evicted, or a draft with many choices, whose
logits need the most memory. After each chunk the request goes to the end of the queue, so that others get their turn.
The number of tokens left to compute depends on the session's cache at that time. So only the scheduler cuts texts into
chunks. Branch tokens belong to the last chunk, because a cache that holds branches cannot be continued.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaperone_common.errors import CloudTimeout, CloudUnavailable, ConfigError, Overloaded, PromptTooLong
from chaperone_common.types import Choice
from cloud_supervisor.model.ports import ForwardResult
from cloud_supervisor.scheduling.batch import Answer, Batch, Chunk, KvView, QueuedRequest

_RECENT_FORWARDS = 32
_FIRST_RETRY_MS = 500  # before any forward was timed

Outcome = list[Choice] | BaseException  # of a chunk: its choices, or why it failed


@dataclass(slots=True)
class _Progress:
    """A request and its progress."""

    request: QueuedRequest
    queued_at: float
    begun: bool = False
    reached: int = 0  # tokens that earlier chunks have read; their cache may have been evicted since
    choices: list[Choice] = field(default_factory=list)
    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def finished(self) -> bool:
        return self.reached == self.request.tree.end

    @property
    def result(self) -> ForwardResult:
        return ForwardResult(self.choices, round(self.queue_s * 1e6), round(self.compute_s * 1e6))


class Scheduler:
    """Orders the requests of many sessions: first come, first served, one chunk at a time.

    A request ends in exactly one `Answer`, unless it is cancelled.
    """

    def __init__(self, *, max_queue: int, chunk_tokens: int, context_tokens: int) -> None:
        """Let up to `max_queue` requests wait, and feed up to `chunk_tokens` of a request in one forward."""
        if max_queue < 1:
            raise ConfigError(f"max_queue: {max_queue} lets no request wait; use at least 1")
        if chunk_tokens < 1:
            raise ConfigError(f"chunk_tokens: {chunk_tokens} lets no request advance; use at least 1")
        self._max_queue = max_queue
        self._chunk_tokens = chunk_tokens
        self._context_tokens = context_tokens
        self._progress: dict[QueuedRequest, _Progress] = {}  # of all requests that are not answered
        self._queue: deque[QueuedRequest] = deque()
        self._running: Batch | None = None
        self._recent_s: deque[float] = deque(maxlen=_RECENT_FORWARDS)
        self._closed = False

    @property
    def queue_length(self) -> int:
        """The number of waiting requests, without the running ones."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """True if a batch is running."""
        return self._running is not None

    def submit(self, request: QueuedRequest, now: float) -> None:
        """Add a request to the queue.

        Raises Overloaded if the queue is full, PromptTooLong, CloudUnavailable once closed, and ValueError for an
        impossible request.
        """
        self._check(request)
        self._progress[request] = _Progress(request, now)
        self._queue.append(request)

    def cancel(self, request: QueuedRequest) -> None:
        """Forget a request. Its running chunk is finished, and stays in the cache for the session's next request."""
        if self._progress.pop(request, None) is not None and request in self._queue:
            self._queue.remove(request)

    def expire(self, request: QueuedRequest, now: float) -> list[Answer]:
        """Refuse a request whose deadline has passed, unless it has begun."""
        progress = self._progress.get(request)
        if progress is None or progress.begun:
            return []
        self._queue.remove(request)
        return [self._late(progress, now)]

    def schedule(self, kv: KvView, now: float) -> tuple[Batch | None, list[Answer]]:
        """Return the batch to run next, if any, and the requests that were answered without the model.

        Call it only while no batch runs.
        """
        answers: list[Answer] = []
        while self._queue and self._running is None:
            progress = self._progress[self._queue.popleft()]
            request = progress.request
            if not progress.begun and request.deadline_at is not None and now >= request.deadline_at:
                answers.append(self._late(progress, now))
                continue
            progress.begun = True
            progress.queue_s += now - progress.queued_at
            if not request.num_choices and kv.held(request.key, request.tree.token_ids) == request.tree.end:
                answers.append(self._answer(progress, progress.result))  # the cache holds the prompt already
            else:
                self._running = Batch((self._next_chunk(progress, kv),))
        return self._running, answers

    def complete(self, outcomes: Sequence[Outcome], elapsed_s: float, now: float) -> list[Answer]:
        """Take the outcome of each chunk of the running batch. Unfinished requests go to the end of the queue."""
        assert self._running is not None, "only a running batch can be completed"
        batch, self._running = self._running, None
        if not any(isinstance(outcome, BaseException) for outcome in outcomes):
            self._recent_s.append(elapsed_s)
        answers: list[Answer] = []
        for chunk, outcome in zip(batch.chunks, outcomes, strict=True):
            progress = self._progress.get(chunk.request)
            if progress is None:  # it was cancelled
                continue
            progress.compute_s += elapsed_s
            if isinstance(outcome, BaseException):
                answers.append(self._answer(progress, outcome))
                continue
            progress.reached = chunk.end
            progress.choices += outcome
            if progress.finished:
                answers.append(self._answer(progress, progress.result))
            elif self._closed:
                answers.append(self._answer(progress, _shutting_down()))
            else:
                progress.queued_at = now
                self._queue.append(chunk.request)
        return answers

    def close(self) -> list[Answer]:
        """Refuse the waiting requests and all later ones; a running chunk is finished."""
        self._closed = True
        waiting, self._queue = self._queue, deque()
        return [self._answer(self._progress[request], _shutting_down()) for request in waiting]

    def _next_chunk(self, progress: _Progress, kv: KvView) -> Chunk:
        """Cut the next chunk of a request. It ends later than each earlier chunk.

        Otherwise two conversations that evict each other between their chunks would never finish.
        """
        tree, left = progress.request.tree, progress.request.num_choices - len(progress.choices)
        held = kv.held(progress.request.key, tree.token_ids[: tree.end - left]) or 0
        end = min(max(held, progress.reached) + self._chunk_tokens, tree.end)
        return Chunk(progress.request, end, left)

    def _check(self, request: QueuedRequest) -> None:
        if self._closed:
            raise _shutting_down()
        tree = request.tree
        if tree.start or not 0 <= request.num_choices <= tree.end or not tree.end:
            raise ValueError(
                f"num_choices: {request.num_choices} for {tree.end} tokens from position {tree.start}; give the whole "
                "text, with at least one token, and at most one choice for each"
            )
        if tree.branches and not request.num_choices:
            raise ValueError(f"branches: {len(tree.branches)} in a request without choices; ask for at least one")
        if tree.depth > self._context_tokens:
            raise PromptTooLong(f"{tree.depth} tokens; the context holds {self._context_tokens}")
        if len(self._queue) >= self._max_queue:
            raise Overloaded(
                f"queue: {len(self._queue)} requests are waiting, the limit is {self._max_queue}; try again later",
                retry_after_ms=self._drain_ms(),
            )

    def _drain_ms(self) -> int:
        """Return the estimated time until all waiting and running requests are done."""
        if not self._recent_s:
            return _FIRST_RETRY_MS
        mean_s = sum(self._recent_s) / len(self._recent_s)
        return max(1, math.ceil(mean_s * (len(self._queue) + self.busy) * 1000))

    def _late(self, progress: _Progress, now: float) -> Answer:
        waited_ms = (now - progress.queued_at) * 1000
        message = f"deadline: the request waited {waited_ms:.0f} ms in the queue and was not started"
        return self._answer(progress, CloudTimeout(message))

    def _answer(self, progress: _Progress, outcome: ForwardResult | BaseException) -> Answer:
        del self._progress[progress.request]
        return Answer(progress.request, outcome)


def _shutting_down() -> CloudUnavailable:
    return CloudUnavailable("the cloud is shutting down; try another replica")
