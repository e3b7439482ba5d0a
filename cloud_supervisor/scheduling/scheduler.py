"""The order in which requests reach the model, as a pure state machine.

It receives requests and a view of the KV store, returns batches, and then receives their outcomes. It has no threads,
futures or clock: `now` is an argument, in seconds.

As in vLLM's scheduler, there are no phases. A request is a text and the choices wanted after its last tokens. What the
cache holds of the text is computed already, and each step gives out a budget of tokens for the rest. Verifications go
before the cloud's own writing, and that before prompts (`WaitingLine`). What exceeds a chunk, like a long prompt or a
conversation that was evicted, is computed in several steps. Branch tokens belong to the last chunk, because a cache
that holds branches cannot be continued.

A verification waits for a forward that has begun, and for all else that its own forward reads. So a forward reads
prompts only up to a given time (`Pace`), and a piece of another long text takes no longer either.

A request that has begun has a place in the KV budget for its whole text, and its cache is not evicted between two
chunks. So any number of long texts end one after the other. A more urgent request that finds no place takes that of the
prompt that has begun last, which is then read again from the start; once for each prompt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence

from chaperone_common.errors import CloudTimeout, CloudUnavailable, ConfigError, Overloaded, PromptTooLong
from chaperone_common.types import Choice
from cloud_supervisor.model.ports import ForwardResult, Urgency
from cloud_supervisor.scheduling.batch import Answer, Batch, Chunk, KvView, QueuedRequest
from cloud_supervisor.scheduling.line import Progress, WaitingLine
from cloud_supervisor.scheduling.pace import Pace

_RECENT_FORWARDS = 32
_LEAST_PIECE = 8  # tokens: smaller pieces cost a forward nearly as much
_FIRST_RETRY_MS = 500  # before any forward was timed

# After a forward, sessions that it served often have another request at once. Waiting this long for them, as a share of
# the forward's time and at most, lets them share the next one, instead of taking turns.
_GATHERING_SHARE = 0.02
_MAX_GATHERING_S = 0.005

Outcome = list[Choice] | BaseException  # of a chunk: its choices, or why it failed


def gathering_s(elapsed_s: float) -> float:
    """Return the seconds to wait after a forward that took `elapsed_s`, before the next one is scheduled."""
    return min(_GATHERING_SHARE * elapsed_s, _MAX_GATHERING_S)


class Scheduler:
    """Orders the requests of many sessions, and cuts them into forwards.

    A request ends in exactly one `Answer`, unless it is cancelled.
    """

    def __init__(
        self,
        *,
        max_queue: int,
        step_tokens: int,
        chunk_tokens: int,
        context_tokens: int,
        step_requests: int = 256,
        prefill_s: float = math.inf,
    ) -> None:
        """Let up to `max_queue` requests wait.

        A forward feeds up to `step_tokens`, of up to `step_requests` requests, and `chunk_tokens` of each. It reads
        prompts up to a time of about `prefill_s`, or else a few tokens of one alone. A piece of another long text takes
        up to this time, too.
        """
        if max_queue < 1:
            raise ConfigError(f"max_queue: {max_queue} lets no request wait; use at least 1")
        if not 1 <= chunk_tokens <= step_tokens:
            raise ConfigError(
                f"chunk_tokens: {chunk_tokens} with step_tokens {step_tokens}; use at least 1, and at most step_tokens"
            )
        self._max_queue = max_queue
        if step_requests < 1:
            raise ConfigError(f"step_requests: {step_requests} lets no request run; use at least 1")
        self._step_tokens = step_tokens
        self._step_requests = step_requests
        self._chunk_tokens = chunk_tokens
        self._context_tokens = context_tokens
        self._prefill_s = prefill_s
        self._pace = Pace()
        self._progress: dict[QueuedRequest, Progress] = {}  # of all requests that are not answered
        self._line = WaitingLine()
        self._running: Batch | None = None
        self._to_release: list[Hashable] = []
        self._reserved_tokens = 0  # of all texts that have a place in the KV budget
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_FORWARDS)  # seconds and chunks of forwards
        self._closed = False

    @property
    def queue_length(self) -> int:
        """The number of waiting requests, without the running ones."""
        return len(self._line)

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
        progress = self._progress[request] = Progress(request, now)
        self._line.arrive(progress)

    def cancel(self, request: QueuedRequest) -> None:
        """Forget a request. Its running chunk is finished, and stays in the cache for the session's next request."""
        progress = self._progress.get(request)
        if progress is None:
            return
        if not self._runs(request):
            self._line.take(progress)
        self._forget(progress)

    def expire(self, request: QueuedRequest, now: float) -> list[Answer]:
        """Refuse a request whose deadline has passed, unless it has begun."""
        progress = self._progress.get(request)
        if progress is None or progress.begun:
            return []
        self._line.take(progress)
        return [self._late(progress, now)]

    def released(self) -> list[Hashable]:
        """Return the sessions whose caches need not be kept any longer for a next chunk, and forget them."""
        released, self._to_release = self._to_release, []
        return released

    def schedule(self, kv: KvView, now: float) -> tuple[Batch | None, list[Answer]]:
        """Return the batch to run next, if any, and the requests that were answered without the model.

        Call it only while no batch runs. Apply what `released` returns before the batch.
        """
        if self._running is not None:
            return None, []
        chunks, answers = self._select(kv, now)
        more = answers
        while more and not chunks:  # those that were answered may have held the memory that others lacked
            chunks, more = self._select(kv, now)
            answers += more
        if chunks:
            self._running = Batch(tuple(chunks))
        return self._running, answers

    def _select(self, kv: KvView, now: float) -> tuple[list[Chunk], list[Answer]]:
        """Return the chunks of one step, and the requests that were answered without the model."""
        chunks: list[Chunk] = []
        answers: list[Answer] = []
        sessions: set[Hashable] = set()
        budget, prefill_s = self._step_tokens, self._prefill_s
        for progress in self._line.in_order():
            if not budget or len(chunks) == self._step_requests:
                break
            request = progress.request
            if not progress.begun and request.deadline_at is not None and now >= request.deadline_at:
                self._line.take(progress)
                answers.append(self._late(progress, now))
            elif not request.num_choices and kv.held(request.key, request.tree.token_ids, request.tenant) == (
                request.tree.end
            ):
                self._begin(progress, now)
                progress.cached = request.tree.end
                answers.append(self._answer(progress, progress.result))  # the cache holds the prompt already
            elif request.key not in sessions and (
                (chunk := self._next_chunk(progress, budget, prefill_s, chunks, kv)) is not None
            ):
                self._begin(progress, now)
                progress.cached = chunk.start if progress.cached is None else progress.cached
                self._reserve(progress)
                prefill_s -= self._pace.seconds(chunk.tokens, chunk.start)
                self._line.charge(request.tenant, chunk.tokens)
                budget -= chunk.tokens
                sessions.add(request.key)
                chunks.append(chunk)
        return chunks, answers

    def complete(self, outcomes: Sequence[Outcome], elapsed_s: float, now: float) -> list[Answer]:
        """Take the outcome of each chunk of the running batch. Unfinished requests wait for their next chunk."""
        assert self._running is not None, "only a running batch can be completed"
        batch, self._running = self._running, None
        if not any(isinstance(outcome, BaseException) for outcome in outcomes):
            self._recent.append((elapsed_s, len(batch.chunks)))
            self._pace.note(batch.chunks, elapsed_s)
        answers: list[Answer] = []
        for chunk, outcome in zip(batch.chunks, outcomes, strict=True):
            progress = self._progress.get(chunk.request)
            if progress is None:  # it was cancelled
                self._to_release.append(chunk.request.key)
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
                self._line.wait(progress)
        return answers

    def close(self) -> list[Answer]:
        """Refuse the waiting requests and all later ones; a running chunk is finished."""
        self._closed = True
        waiting = [progress for progress in self._progress.values() if not self._runs(progress.request)]
        for progress in waiting:
            self._line.take(progress)
        return [self._answer(progress, _shutting_down()) for progress in waiting]

    def _begin(self, progress: Progress, now: float) -> None:
        self._line.take(progress)
        progress.begun = True
        progress.queue_s += now - progress.queued_at

    def _next_chunk(
        self, progress: Progress, budget: int, prefill_s: float, chunks: Sequence[Chunk], kv: KvView
    ) -> Chunk | None:
        """Cut the next chunk of a request, next to those of this step; None if none fits.

        It feeds up to `budget` tokens, and if it is a prompt or a piece, in about `prefill_s` seconds.
        """
        request, tree = progress.request, progress.request.tree
        left = progress.choices_left
        start = kv.held(request.key, tree.token_ids[: tree.end - left], request.tenant) or 0
        end = self._end(progress, start, budget, prefill_s, alone=not chunks)
        if end is None or not self._has_memory(progress, chunks, kv.capacity_tokens):
            return None
        return Chunk(request, start, end, left)

    def _end(self, progress: Progress, start: int, budget: int, prefill_s: float, *, alone: bool) -> int | None:
        """Return the end of a chunk that feeds at most `budget` tokens; None if it is better to wait."""
        tree = progress.request.tree
        chain, branches = tree.end - start, len(tree.branches)
        most = self._chunk_tokens
        if progress.request.urgency is Urgency.READ:
            most = self._piece(start, prefill_s, alone=alone)
        elif chain > progress.choices_left + _LEAST_PIECE:  # a lost cache; its device waits, as others do
            most = self._piece(start, self._prefill_s, alone=True)
        if chain + branches <= min(budget, most) or (chain == 1 and 1 + branches <= budget):
            return tree.end
        # A verification in two parts takes two steps: it may as well wait for one.
        if chain + branches <= most and progress.request.urgency is not Urgency.READ:
            return None
        cut = min(budget, most, chain - 1 if branches else chain)
        return start + cut if cut > 0 else None

    def _piece(self, start: int, prefill_s: float, *, alone: bool) -> int:
        """Return the most tokens of a piece of a text, after its first `start` ones."""
        if prefill_s == math.inf:
            return self._chunk_tokens
        least = min(_LEAST_PIECE, self._chunk_tokens)
        within = self._pace.tokens_within(prefill_s, start, self._chunk_tokens) if self._pace.known else 0
        if within < least:
            return least if alone else 0
        return within

    def _has_memory(self, progress: Progress, chunks: Sequence[Chunk], capacity_tokens: int) -> bool:
        """Return whether a request's whole text has a place in the KV budget, next to all that have begun."""
        if progress.holds_memory or progress.request.tree.size > capacity_tokens:  # the store refuses the latter
            return True
        missing = progress.request.tree.size + self._reserved_tokens - capacity_tokens
        if missing <= 0:
            return True
        holders = [other for other in self._progress.values() if other.holds_memory]
        scheduled = {chunk.request for chunk in chunks}
        victims: list[Progress] = []
        for other in reversed(holders):
            lesser = other.request.urgency is Urgency.READ and progress.request.urgency is not Urgency.READ
            if missing > _sizes(victims) and lesser and not other.preempted and other.request not in scheduled:
                victims.append(other)
        if missing > _sizes(victims):
            return False
        for victim in victims:
            self._unreserve(victim)
            victim.preempted = True
            self._to_release.append(victim.request.key)
        return True

    def _reserve(self, progress: Progress) -> None:
        if not progress.holds_memory:
            progress.holds_memory = True
            self._reserved_tokens += progress.request.tree.size

    def _unreserve(self, progress: Progress) -> None:
        progress.holds_memory = False
        self._reserved_tokens -= progress.request.tree.size

    def _runs(self, request: QueuedRequest) -> bool:
        return self._running is not None and any(chunk.request is request for chunk in self._running.chunks)

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
        if len(tree.branches) >= self._step_tokens:
            raise ValueError(f"branches: {len(tree.branches)}; one forward feeds at most {self._step_tokens} tokens")
        if tree.depth > self._context_tokens:
            raise PromptTooLong(f"{tree.depth} tokens; the context holds {self._context_tokens}")
        if len(self._line) >= self._max_queue:
            raise Overloaded(
                f"queue: {len(self._line)} requests are waiting, the limit is {self._max_queue}; try again later",
                retry_after_ms=self._drain_ms(),
            )

    def _drain_ms(self) -> int:
        """Return the estimated time until all waiting and running requests are done."""
        if not self._recent:
            return _FIRST_RETRY_MS
        total_s = sum(elapsed_s for elapsed_s, _ in self._recent)
        chunks = sum(count for _, count in self._recent)
        running_s = total_s / len(self._recent) if self.busy else 0.0
        return max(1, math.ceil((total_s / chunks * len(self._line) + running_s) * 1000))

    def _late(self, progress: Progress, now: float) -> Answer:
        waited_ms = (now - progress.queued_at) * 1000
        message = f"deadline: the request waited {waited_ms:.0f} ms in the queue and was not started"
        return self._answer(progress, CloudTimeout(message))

    def _answer(self, progress: Progress, outcome: ForwardResult | BaseException) -> Answer:
        self._forget(progress)
        return Answer(progress.request, outcome)

    def _forget(self, progress: Progress) -> None:
        """Forget a request that does not wait."""
        del self._progress[progress.request]
        self._line.leave(progress)
        if progress.holds_memory:
            self._unreserve(progress)
            if not progress.finished and not self._runs(progress.request):
                self._to_release.append(progress.request.key)


def _sizes(holders: Iterable[Progress]) -> int:
    return sum(holder.request.tree.size for holder in holders)


def _shutting_down() -> CloudUnavailable:
    return CloudUnavailable("the cloud is shutting down; try another replica")
