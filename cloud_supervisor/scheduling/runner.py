"""The one thread of the model, and the futures of the callers that wait for it.

Everything that changes the model or its caches runs in that thread, one job after the other. So neither needs a lock,
and the event loop is never held up. The scheduler runs in the event loop, and looks at the KV store only while the
thread is idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.store import KvStats, KvStore
from cloud_supervisor.model.ports import ForwardRequest, ForwardResult, TargetModel
from cloud_supervisor.scheduling.batch import Answer, Batch, Chunk, QueuedRequest
from cloud_supervisor.scheduling.scheduler import Outcome, Scheduler

_LOG = logging.getLogger(__name__)


class ModelRunner:
    """A `ForwardQueue`: the forwards of many sessions, on one model, in the scheduler's order."""

    def __init__(
        self,
        model: TargetModel,
        kv_store: KvStore,
        *,
        max_queue: int,
        chunk_tokens: int = 256,
        clock: Clock | None = None,
    ) -> None:
        """Schedule as `Scheduler` describes it; raises ConfigError for limits that serve nobody."""
        self._scheduler = Scheduler(max_queue=max_queue, chunk_tokens=chunk_tokens, context_tokens=model.context_tokens)
        self._model = model
        self._kv_store = kv_store
        self._clock = clock or MonotonicClock()
        self._answers: dict[QueuedRequest, asyncio.Future[ForwardResult]] = {}
        self._to_free: list[Hashable] = []  # sessions, as soon as the thread is idle
        self._running: asyncio.Future[Any] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._closed = False

    @property
    def queue_length(self) -> int:
        """Requests that wait; those that run are not among them."""
        return self._scheduler.queue_length

    @property
    def busy(self) -> bool:
        """A forward is running."""
        return self._scheduler.busy

    @property
    def kv_stats(self) -> KvStats:
        """The state of the KV store."""
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
        """Read a session's whole text, and return the choices after its last `num_choices` tokens and its branches.

        Raises as `ForwardQueue.forward` does, ValueError for an impossible request, and whatever the model raises.
        Cancelling takes a request that waits out of the queue. A chunk that runs is finished, and its tokens stay in
        the cache for the session's next request.
        """
        loop, now = asyncio.get_running_loop(), self._clock.now()
        deadline_at = None if deadline_ms is None else now + deadline_ms / 1000
        request = QueuedRequest(key, tree, num_choices, sampling, deadline_at)
        self._scheduler.submit(request, now)
        answer: asyncio.Future[ForwardResult] = loop.create_future()
        self._answers[request] = answer
        alarm = None if deadline_ms is None else loop.call_later(deadline_ms / 1000, self._expire, request)
        self._start_next()
        try:
            return await answer
        finally:
            if alarm is not None:
                alarm.cancel()
            del self._answers[request]
            self._scheduler.cancel(request)

    def free(self, key: Hashable) -> None:
        """Forget a session's cache as soon as the running forward has ended.

        Cancel the session's waiting requests first: a later one would read everything again.
        """
        if not self._closed:
            self._to_free.append(key)
            self._start_next()

    async def close(self) -> None:
        """Refuse new and waiting requests, let the running chunk finish, and end the thread."""
        self._closed = True
        self._deliver(self._scheduler.close())
        while self._running is not None:
            await asyncio.wait([self._running])
        await asyncio.to_thread(self._thread.shutdown)

    def _expire(self, request: QueuedRequest) -> None:
        """Refuse a caller at its deadline, not when its turn would have come."""
        self._deliver(self._scheduler.expire(request, self._clock.now()))

    def _start_next(self) -> None:
        """Give the thread its next job, if it is idle."""
        if self._running is not None:
            return
        loop = asyncio.get_running_loop()
        if self._to_free:
            keys, self._to_free = self._to_free, []
            freeing = self._running = loop.run_in_executor(self._thread, self._free, keys)
            freeing.add_done_callback(self._freed)
            return
        batch, answers = self._scheduler.schedule(self._kv_store, self._clock.now())
        self._deliver(answers)
        if batch is not None:
            computing = self._running = loop.run_in_executor(self._thread, self._compute, batch)
            computing.add_done_callback(partial(self._computed, batch))

    def _freed(self, done: asyncio.Future[None]) -> None:
        self._running = None
        if (error := done.exception()) is not None:
            _LOG.error("sessions could not be freed", exc_info=error)
        self._start_next()

    def _computed(self, batch: Batch, done: asyncio.Future[tuple[list[Outcome], float]]) -> None:
        self._running = None
        bug = done.exception()  # the model's own errors are outcomes
        outcomes, elapsed_s = done.result() if bug is None else ([bug] * len(batch.chunks), 0.0)
        for chunk, outcome in zip(batch.chunks, outcomes, strict=True):
            if isinstance(outcome, BaseException) and chunk.request not in self._answers:
                _LOG.warning("an abandoned request of session %r failed", chunk.request.key, exc_info=outcome)
        self._deliver(self._scheduler.complete(outcomes, elapsed_s, self._clock.now()))
        self._start_next()

    def _deliver(self, answers: Sequence[Answer]) -> None:
        for request, outcome in ((answer.request, answer.outcome) for answer in answers):
            future = self._answers[request]
            if future.done():  # its caller has just been cancelled
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    # In the model's thread

    def _free(self, keys: Sequence[Hashable]) -> None:
        for key in keys:
            self._kv_store.free(key)

    def _compute(self, batch: Batch) -> tuple[list[Outcome], float]:
        """Run one forward; return each chunk's outcome, and the seconds that all took."""
        began_at = self._clock.now()
        outcomes: dict[QueuedRequest, Outcome] = {}
        fed: list[tuple[Chunk, ForwardRequest]] = []
        for chunk in batch.chunks:
            request = chunk.request
            try:
                cache, held = self._kv_store.prepare(request.key, request.tree, num_choices=chunk.choices_left)
            except Exception as error:
                outcomes[request] = error
            else:
                piece = request.tree.piece(held, chunk.end)
                fed.append((chunk, ForwardRequest(cache, piece, chunk.num_choices, request.sampling)))
        outcomes.update(self._feed(fed))
        return [outcomes[chunk.request] for chunk in batch.chunks], self._clock.now() - began_at

    def _feed(self, fed: Sequence[tuple[Chunk, ForwardRequest]]) -> dict[QueuedRequest, Outcome]:
        """Call the model, and report the outcome to the KV store."""
        if not fed:
            return {}
        try:
            choices = self._model.forward([request for _, request in fed])
        except BaseException as error:
            for chunk, _ in fed:
                self._kv_store.abandon(chunk.request.key)
            return {chunk.request: _for_future(error) for chunk, _ in fed}
        outcomes: dict[QueuedRequest, Outcome] = {}
        for (chunk, _), found in zip(fed, choices, strict=True):
            try:
                self._kv_store.commit(chunk.request.key, chunk.request.tree.piece(0, chunk.end))
            except Exception as error:
                outcomes[chunk.request] = error
            else:
                outcomes[chunk.request] = found
        return outcomes


def _for_future(error: BaseException) -> BaseException:
    """Return an error that a future can carry: its caller would wait for ever for a StopIteration."""
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError("the model raised StopIteration")
    wrapped.__cause__ = error
    return wrapped
