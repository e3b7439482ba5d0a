"""The one thread of the model, and the futures of the callers that wait for it.

Everything that changes the model or its caches runs in that thread, one job after the other. So neither needs a lock,
and the event loop is never held up. The scheduler runs in the event loop, and looks at the KV store only while the
thread is idle.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from chaperone_common.beams.scoring import Scoring
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.errors import trace_of
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.store import KvStats, KvStore
from cloud_supervisor.model.ports import ForwardRequest, ForwardResult, TargetModel, Urgency
from cloud_supervisor.observation import Observer, Observers, Stepped
from cloud_supervisor.scheduling.batch import Answer, Batch, Chunk, QueuedRequest
from cloud_supervisor.scheduling.scheduler import Outcome, Scheduler, gathering_s

_LOG = logging.getLogger(__name__)


class _Computed(NamedTuple):
    """One forward: each chunk's outcome, and what it took."""

    outcomes: list[Outcome]
    elapsed_s: float = 0.0
    fed_tokens: int = 0
    held_tokens: int = 0


class ModelRunner:
    """A `ForwardQueue`: the forwards of many sessions, on one model, in the scheduler's order."""

    def __init__(
        self,
        model: TargetModel,
        kv_store: KvStore,
        *,
        max_queue: int,
        step_tokens: int = 256,
        step_requests: int = 256,
        chunk_tokens: int = 256,
        prefill_s: float = math.inf,
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Schedule as `Scheduler` describes it; raises ConfigError for limits that serve nobody."""
        self._scheduler = Scheduler(
            max_queue=max_queue,
            step_tokens=step_tokens,
            step_requests=step_requests,
            chunk_tokens=chunk_tokens,
            context_tokens=model.context_tokens,
            prefill_s=prefill_s,
        )
        self._model = model
        self._kv_store = kv_store
        self._clock = clock or MonotonicClock()
        self._observer = observer or Observers()
        self._answers: dict[QueuedRequest, asyncio.Future[ForwardResult]] = {}
        self._to_change: list[tuple[Callable[[Hashable], None], Hashable]] = []  # as soon as the thread is idle
        self._running: asyncio.Future[Any] | None = None
        self._gathering: asyncio.TimerHandle | None = None
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
        top_logprobs: int | None = None,
        first_reported: int = 0,
        deadline_ms: float | None = None,
        tenant: str = "",
        urgency: Urgency = Urgency.VERIFY,
        encoded: bool = False,
        scoring: Scoring | None = None,
    ) -> ForwardResult:
        """Read a session's whole text, and return the choices after its last `num_choices` tokens and its branches.

        With `encoded` it returns the encoding of these tokens in place of choices, and with `scoring` scores.
        Raises as `ForwardQueue.forward` does, ValueError for an impossible request, and whatever the model raises.
        Cancelling takes a request that waits out of the queue. A chunk that runs is finished, and its tokens stay in
        the cache for the session's next request.
        """
        loop, now = asyncio.get_running_loop(), self._clock.now()
        deadline_at = None if deadline_ms is None else now + deadline_ms / 1000
        request = QueuedRequest(
            key,
            tree,
            num_choices,
            sampling,
            deadline_at,
            tenant,
            urgency,
            top_logprobs,
            first_reported,
            encoded,
            scoring,
        )
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
            self._to_change.append((self._kv_store.free, key))
            self._start_next()

    def spare(self, key: Hashable) -> None:
        """Let a session's cache go first when memory is short."""
        if not self._closed:
            self._to_change.append((self._kv_store.spare, key))
            self._start_next()

    async def close(self) -> None:
        """Refuse new and waiting requests, let the running chunk finish, and end the thread."""
        self._closed = True
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._deliver(self._scheduler.close())
        self._start_next()  # caches may have to be freed
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
        self._to_change += [(self._kv_store.release, key) for key in self._scheduler.released()]
        if self._to_change:
            changes, self._to_change = self._to_change, []
            changing = self._running = loop.run_in_executor(self._thread, self._change, changes)
            changing.add_done_callback(self._changed)
            return
        if self._gathering is not None:
            return
        batch, answers = self._scheduler.schedule(self._kv_store, self._clock.now())
        self._deliver(answers)
        released = self._scheduler.released()
        if batch is not None:
            computing = self._running = loop.run_in_executor(self._thread, self._compute, batch, released)
            computing.add_done_callback(partial(self._computed, batch))

    def _changed(self, done: asyncio.Future[None]) -> None:
        self._running = None
        if (error := done.exception()) is not None:
            _LOG.error("the KV store could not be changed: %s", trace_of(error))
        self._start_next()

    def _computed(self, batch: Batch, done: asyncio.Future[_Computed]) -> None:
        self._running = None
        bug = done.exception()  # the model's own errors are outcomes
        outcomes, elapsed_s, fed, held = done.result() if bug is None else _Computed([bug] * len(batch.chunks))
        self._observer.notice(Stepped(len(batch.chunks), fed, held, elapsed_s))
        for chunk, outcome in zip(batch.chunks, outcomes, strict=True):
            if isinstance(outcome, BaseException) and chunk.request not in self._answers:
                _LOG.warning("an abandoned request failed: %s", trace_of(outcome))
        self._deliver(self._scheduler.complete(outcomes, elapsed_s, self._clock.now()))
        if self._closed:
            self._start_next()
            return
        self._gathering = asyncio.get_running_loop().call_later(gathering_s(elapsed_s), self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
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

    @staticmethod
    def _change(changes: Sequence[tuple[Callable[[Hashable], None], Hashable]]) -> None:
        for change, key in changes:
            change(key)

    def _compute(self, batch: Batch, released: Sequence[Hashable]) -> _Computed:
        """Run one forward."""
        began_at = self._clock.now()
        for key in released:
            self._kv_store.release(key)
        outcomes: dict[QueuedRequest, Outcome] = {}
        fed = self._prepare(batch.chunks, outcomes)
        self._feed(fed, outcomes)
        fed_tokens = sum(request.tree.size - request.tree.start for _, request in fed)
        held_tokens = sum(request.tree.start for _, request in fed)
        elapsed_s = self._clock.now() - began_at
        return _Computed([outcomes[chunk.request] for chunk in batch.chunks], elapsed_s, fed_tokens, held_tokens)

    def _prepare(
        self, chunks: Sequence[Chunk], outcomes: dict[QueuedRequest, Outcome]
    ) -> list[tuple[Chunk, ForwardRequest]]:
        """Return what the model has to read of each chunk; those without a place in memory have their outcome."""
        fed: list[tuple[Chunk, ForwardRequest]] = []
        for chunk in chunks:
            request = chunk.request
            try:
                cache, held = self._kv_store.prepare(
                    request.key, request.tree, num_choices=chunk.choices_left, tenant=request.tenant
                )
            except Exception as error:
                outcomes[request] = error
            else:
                piece = request.tree.piece(held, chunk.end)
                reading = ForwardRequest(
                    cache,
                    piece,
                    chunk.num_choices,
                    request.sampling,
                    request.top_logprobs,
                    chunk.first_reported,
                    request.encoded,
                    request.scoring if chunk.num_choices else None,  # earlier chunks only read
                )
                fed.append((chunk, reading))
        return fed

    def _feed(self, fed: Sequence[tuple[Chunk, ForwardRequest]], outcomes: dict[QueuedRequest, Outcome]) -> None:
        """Call the model, and report to the KV store. If that fails, each chunk is tried alone, from its beginning."""
        if not fed:
            return
        try:
            answers = self._model.step([request for _, request in fed])
        except BaseException as error:
            for chunk, _ in fed:
                self._kv_store.abandon(chunk.request.key)
                outcomes[chunk.request] = _for_future(error)
            if len(fed) > 1:
                for chunk, _ in fed:
                    self._feed(self._prepare([chunk], outcomes), outcomes)
            return
        for (chunk, _), found in zip(fed, answers, strict=True):
            try:
                self._kv_store.commit(chunk.request.key, chunk.request.tree.piece(0, chunk.end))
            except Exception as error:
                outcomes[chunk.request] = error
            else:
                outcomes[chunk.request] = found


def _for_future(error: BaseException) -> BaseException:
    """Return an error that a future can carry: its caller would wait for ever for a StopIteration."""
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError("the model raised StopIteration")
    wrapped.__cause__ = error
    return wrapped
