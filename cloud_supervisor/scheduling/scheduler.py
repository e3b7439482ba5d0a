"""The order in which requests reach the model, as a pure state machine.

It receives requests and a view of the KV store, returns batches, and then receives their outcomes. It has no threads,
futures or clock: `now` is an argument, in seconds.

As in vLLM's scheduler, there are no phases. A request is a text and the choices wanted after its last tokens. What the
cache holds of the text is computed already, and each step gives out a budget of tokens for the rest. Verifications go
before the cloud's own writing, and that before prompts (`WaitingLine`). What exceeds a chunk, like a long prompt or a
conversation that was evicted, is computed in several steps. Branch tokens belong to the last chunk, because a cache
that holds branches cannot be continued.

A verification waits for a forward that has begun, and for all else that its own forward reads. So a forward reads
prompts only up to a given time (`Pace`), and for no longer texts whose caches were lost, except a few tokens of each.

A request that has begun has a place in the KV budget for its whole text, and its cache is not evicted between two
chunks. So any number of long texts end one after the other. A more urgent request that finds no place takes that of the
prompt that has begun last, which is then read again from the start; once for each prompt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from chaperone_common.errors import CloudTimeout, CloudUnavailable, ConfigError, Overloaded, PromptTooLong
from cloud_supervisor.model.ports import ForwardResult, Found, Urgency, check_rows
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

Outcome = Found | BaseException  # of a chunk: its choices or encoding, or why it failed


def gathering_s(elapsed_s: float) -> float:
    """Return the seconds to wait after a forward that took `elapsed_s`, before the next one is scheduled."""
    return min(_GATHERING_SHARE * elapsed_s, _MAX_GATHERING_S)


@dataclass(slots=True)
class _Room:
    """The rest of a step's budgets."""

    tokens: int
    prompts_s: float  # time of the forward up to which it reads prompts
    lost_s: float  # time for pieces of lost caches
    read_before: bool  # the step before had a piece of either
    pieces: int = 0  # of either, that this step has

    def owes_piece(self, chunks: Sequence[Chunk]) -> bool:
        """Return whether a piece is due, although it makes the step longer: every second time, or if it is alone."""
        return not self.pieces and not (chunks and self.read_before)


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
        prompts up to a time of about `prefill_s`, and every second one reads a few tokens in any case. Texts of lost
        caches are read for up to this time together, and a few tokens of each.
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
        self._read_before = False  # the last step had a piece of a long text
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
        room = _Room(self._step_tokens, self._prefill_s, self._prefill_s, self._read_before)
        for progress in self._line.in_order():
            if not room.tokens or len(chunks) == self._step_requests:
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
            elif request.key not in sessions and ((chunk := self._next_chunk(progress, room, chunks, kv)) is not None):
                self._begin(progress, now)
                progress.cached = chunk.start if progress.cached is None else progress.cached
                self._reserve(progress)
                self._take_room(room, chunk, progress)
                self._line.charge(request.tenant, chunk.tokens)
                sessions.add(request.key)
                chunks.append(chunk)
        self._read_before = bool(room.pieces)
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
            progress.add(outcome)
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

    def _take_room(self, room: _Room, chunk: Chunk, progress: Progress) -> None:
        seconds = self._pace.seconds(chunk.tokens, chunk.start)
        room.tokens -= chunk.tokens
        room.prompts_s -= seconds
        lost = _is_lost(progress, chunk.start)
        if lost:
            room.lost_s -= seconds
        room.pieces += lost or progress.request.urgency is Urgency.READ

    def _next_chunk(self, progress: Progress, room: _Room, chunks: Sequence[Chunk], kv: KvView) -> Chunk | None:
        """Cut the next chunk of a request, next to those of this step; None if none fits."""
        request, tree = progress.request, progress.request.tree
        left = progress.choices_left
        start = kv.held(request.key, tree.token_ids[: tree.end - left], request.tenant) or 0
        end = self._end(progress, start, room, due=room.owes_piece(chunks))
        if end is None or not self._has_memory(progress, chunks, kv.capacity_tokens):
            return None
        return Chunk(request, start, end, left)

    def _end(self, progress: Progress, start: int, room: _Room, *, due: bool) -> int | None:
        """Return the end of a chunk that begins at `start`; None if it is better to wait."""
        tree = progress.request.tree
        chain, branches = tree.end - start, len(tree.branches)
        most, few = self._chunk_tokens, min(_LEAST_PIECE, self._chunk_tokens)
        if progress.request.urgency is Urgency.READ:
            most = self._piece(start, room.prompts_s, due=due)
        elif _is_lost(progress, start):  # its device waits, as those of the others do
            most = max(few, self._piece(start, room.lost_s, due=due))
        if chain + branches <= min(room.tokens, most) or (chain == 1 and 1 + branches <= room.tokens):
            return tree.end
        # A verification in two parts takes two steps: it may as well wait for one.
        if chain + branches <= most and progress.request.urgency is not Urgency.READ:
            return None
        cut = min(room.tokens, most, chain - 1 if branches else chain)
        return start + cut if cut > 0 else None

    def _piece(self, start: int, seconds: float, *, due: bool) -> int:
        """Return the most tokens of a piece of a text after its first `start` ones; one that is `due` has some."""
        if seconds == math.inf:
            return self._chunk_tokens
        few = min(_LEAST_PIECE, self._chunk_tokens)
        within = self._pace.tokens_within(seconds, start, self._chunk_tokens) if self._pace.known else 0
        if within >= few:
            return within
        # If all forwards were of one size, their time may be that of any other size. A larger one shows it.
        return min(max(few, self._pace.untried_tokens), self._chunk_tokens) if due else 0

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
        if request.encoded and (tree.branches or not request.num_choices):
            raise ValueError(
                f"encoded: {request.num_choices} rows of a text with {len(tree.branches)} branches; give at least one "
                "row, and no branches"
            )
        if request.scoring is not None:
            check_rows(request.scoring, request.num_choices, len(tree.branches), encoded=request.encoded)
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


def _is_lost(progress: Progress, start: int) -> bool:
    """Return whether a verification has to read much of its text again, because its cache was evicted."""
    unread = progress.request.tree.end - start - progress.choices_left
    return progress.request.urgency is not Urgency.READ and unread > _LEAST_PIECE


def _sizes(holders: Iterable[Progress]) -> int:
    return sum(holder.request.tree.size for holder in holders)


def _shutting_down() -> CloudUnavailable:
    return CloudUnavailable("the cloud is shutting down; try another replica")
