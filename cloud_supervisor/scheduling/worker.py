"""One thread for the model, and the queue in front of it.

Everything that touches the model or its caches runs in that thread, one after the other, so neither needs a lock and
the event loop is never held up. What is refused is refused at once and with a number; nobody waits for ever.

A long reading is done in pieces, between which the others get their turn: a conversation that was evicted and has to
be read again, a draft or an audit with many choices (whose logits are the largest tensors here). Only the worker knows
what a session's cache still holds when its turn comes, so only here can it be told whether a reading is long. Branches
are read with the last piece, since no piece can follow one after which the cache holds more than a single path.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.errors import CloudTimeout, CloudUnavailable, ConfigError, Overloaded, PromptTooLong
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.kv.store import KvStats, KvStore
from cloud_supervisor.model.ports import ForwardRequest, ForwardResult, TargetModel

_log = logging.getLogger(__name__)

_RECENT_READINGS = 32
_FIRST_RETRY_MS = 500  # before any reading has been timed


@dataclass(slots=True, eq=False)
class _Job:
    key: Hashable
    tree: TokenTree
    num_choices: int
    sampling: SamplingParams
    queued_at: float
    deadline_at: float | None
    answer: asyncio.Future[ForwardResult]
    begun: bool = False
    reached: int = 0  # tokens that an earlier piece has read, though they may have been evicted since
    found: list[Choice] = field(default_factory=list)
    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def finished(self) -> bool:
        return self.reached == self.tree.end

    @property
    def result(self) -> ForwardResult:
        return ForwardResult(self.found, queue_us=round(self.queue_s * 1e6), compute_us=round(self.compute_s * 1e6))


class ModelWorker:
    """Reads for many sessions with one model, first come, first served; after each piece it is the others' turn."""

    def __init__(
        self,
        model: TargetModel,
        kv_store: KvStore,
        *,
        max_queue: int,
        chunk_tokens: int = 256,
        clock: Clock | None = None,
    ) -> None:
        if max_queue < 1:
            raise ConfigError(f"max_queue: {max_queue} leaves no reading to be served; use at least 1")
        if chunk_tokens < 1:
            raise ConfigError(f"chunk_tokens: {chunk_tokens} lets no reading get anywhere; use at least 1")
        self._model = model
        self._kv_store = kv_store
        self._max_queue = max_queue
        self._chunk_tokens = chunk_tokens
        self._clock = clock or MonotonicClock()
        self._queue: deque[_Job] = deque()
        self._running: asyncio.Future[float] | None = None
        self._recent_s: deque[float] = deque(maxlen=_RECENT_READINGS)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._closed = False

    @property
    def queue_length(self) -> int:
        """Readings that wait; the running one is not among them."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether a reading is running."""
        return self._running is not None

    @property
    def kv_stats(self) -> KvStats:
        return self._kv_store.stats

    async def forward(
        self,
        key: Hashable,
        tree: TokenTree,
        num_choices: int,
        sampling: SamplingParams,
        *,
        deadline_ms: float | None = None,
    ) -> ForwardResult:
        """Read a session's whole text and return the choices after its last `num_choices` tokens and its branches.

        Only what the session's cache lacks is computed. With `num_choices` 0 the text is only read ahead.
        Raises `Overloaded` at once when the queue is full, `CloudTimeout` if `deadline_ms` passes before the
        reading starts (one that has started is finished), `PromptTooLong`, `CloudUnavailable` once closed, and
        whatever the model raises. Cancelling takes a waiting reading out of the queue; a running piece is finished,
        and its work is kept for the session's next reading.
        """
        self._check(tree, num_choices)
        loop = asyncio.get_running_loop()
        now = self._clock.now()
        deadline_at = None if deadline_ms is None else now + deadline_ms / 1000
        job = _Job(key, tree, num_choices, sampling, now, deadline_at, loop.create_future())
        alarm = None if deadline_ms is None else loop.call_later(deadline_ms / 1000, self._expire, job)
        self._queue.append(job)
        self._start_next()
        try:
            return await job.answer
        finally:
            if alarm is not None:
                alarm.cancel()
            if job in self._queue:  # the awaiting task was cancelled
                self._queue.remove(job)

    def free(self, key: Hashable) -> None:
        """Forget a session's cache as soon as the running reading has ended.

        Cancel the session's waiting readings first: one that starts later would read everything again.
        """
        if not self._closed:
            self._thread.submit(self._kv_store.free, key)

    async def close(self) -> None:
        """Refuse what comes and what waits, let the running piece finish, and end the thread."""
        self._closed = True
        while self._queue:
            self._refuse(self._queue.popleft(), _shutting_down())
        if self._running is not None:
            await asyncio.wait([self._running])
        await asyncio.to_thread(self._thread.shutdown)

    def _check(self, tree: TokenTree, num_choices: int) -> None:
        """Refuse what cannot or must not be queued."""
        if self._closed:
            raise _shutting_down()
        if tree.start or not tree.token_ids or not 0 <= num_choices <= tree.end:
            raise ValueError(f"num_choices: {num_choices} of {tree.end} tokens; there must be tokens, and as many")
        if tree.branches and not num_choices:
            raise ValueError(f"branches: {len(tree.branches)} next to a text that is only read ahead; ask for a choice")
        if tree.depth > self._model.context_tokens:
            raise PromptTooLong(f"{tree.depth} tokens; the context holds {self._model.context_tokens}")
        if len(self._queue) >= self._max_queue:
            raise Overloaded(
                f"queue: {len(self._queue)} readings wait and {self._max_queue} may; try again later",
                retry_after_ms=self._drain_ms(),
            )

    def _drain_ms(self) -> int:
        """Estimate when everything that is queued or running now will be done."""
        if not self._recent_s:
            return _FIRST_RETRY_MS
        mean_s = sum(self._recent_s) / len(self._recent_s)
        return max(1, math.ceil(mean_s * (len(self._queue) + self.busy) * 1000))

    def _start_next(self) -> None:
        """Hand the oldest waiting reading that is still wanted to the thread, if that is idle."""
        while self._queue and self._running is None:
            job = self._queue.popleft()
            if not job.begun and job.deadline_at is not None and self._clock.now() >= job.deadline_at:
                self._refuse(job, self._late(job))
                continue
            job.begun = True
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self._thread, self._compute, job)
            self._running.add_done_callback(partial(self._finish, job))

    def _finish(self, job: _Job, done: asyncio.Future[float]) -> None:
        """Answer a reading whose last piece was read; any other goes to the end of the queue."""
        self._running = None
        error = done.exception()
        if error is None:
            self._recent_s.append(done.result())
        if job.answer.done():  # nobody waits for it any more
            if error is not None:
                _log.warning("an abandoned reading of session %r failed", job.key, exc_info=error)
        elif error is not None:
            job.answer.set_exception(error)
        elif job.finished:
            job.answer.set_result(job.result)
        elif self._closed:
            self._refuse(job, _shutting_down())
        else:
            job.queued_at = self._clock.now()
            self._queue.append(job)
        self._start_next()

    def _expire(self, job: _Job) -> None:
        """Tell a caller at its deadline, not when its turn would have come."""
        if job in self._queue and not job.begun:
            self._queue.remove(job)
            self._refuse(job, self._late(job))

    def _late(self, job: _Job) -> CloudTimeout:
        waited_ms = (self._clock.now() - job.queued_at) * 1000
        return CloudTimeout(f"deadline: the reading waited {waited_ms:.0f} ms in the queue and was not started")

    @staticmethod
    def _refuse(job: _Job, error: Exception) -> None:
        if not job.answer.done():
            job.answer.set_exception(error)

    def _compute(self, job: _Job) -> float:
        """Read one piece and return its seconds. Runs in the model's thread; a batch of one until they are batched."""
        started_at = self._clock.now()
        job.queue_s += started_at - job.queued_at
        length = job.tree.end
        if not job.num_choices and self._kv_store.covers(job.key, job.tree.token_ids):  # a prompt that is resumed from
            job.reached = length
            return 0.0
        wanted = job.num_choices - len(job.found)
        cache, held = self._kv_store.prepare(job.key, job.tree, num_choices=wanted)
        # Evicted between two pieces, a reading starts from nothing, yet each piece ends beyond the last one: two
        # conversations that evict each other would otherwise never get to their ends.
        end = min(max(held, job.reached) + self._chunk_tokens, length)
        num_choices = max(0, end - (length - wanted))
        try:
            if end > held:
                request = ForwardRequest(cache, job.tree.piece(held, end), num_choices, job.sampling)
                job.found += self._model.forward([request])[0]
        except BaseException as error:
            self._kv_store.abandon(job.key)
            if isinstance(error, StopIteration):  # a future cannot carry it, and its caller would wait for ever
                raise RuntimeError("the model raised StopIteration") from error
            raise
        self._kv_store.commit(job.key, job.tree.piece(0, end))
        job.reached = end
        elapsed_s = self._clock.now() - started_at
        job.compute_s += elapsed_s
        return elapsed_s


def _shutting_down() -> CloudUnavailable:
    return CloudUnavailable("the cloud is shutting down; try another replica")
