"""A replica in virtual time: the service's own scheduler, and forwards that take the time of a profile.

It does what `ModelRunner` does, without a thread: it schedules as soon as it is idle, and gathers requests for a moment
after each forward. A test holds the two to the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import simpy

from benchmarks.fleet.caches import SimulatedCaches
from benchmarks.fleet.model import Fleet, StepTime
from chaperone_common.types import Choice
from cloud_supervisor.scheduling.batch import Answer, Batch, QueuedRequest
from cloud_supervisor.scheduling.scheduler import Outcome, gathering_s

_CHOICE = Choice(0, 0.0, 0)

Answered = Callable[[Answer], None]
Watch = Callable[[float, Sequence[tuple[Hashable, int, int]]], None]


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is measured, [begins, ends), in ms."""

    begins: float
    ends: float

    def holds(self, time: float) -> bool:
        """Return whether a time is within it."""
        return self.begins <= time < self.ends


class Gauge:
    """The time integral of a level over a window, and its peak there."""

    def __init__(self, env: simpy.Environment, window: Window) -> None:
        self._env, self._window = env, window
        self._since = 0.0
        self._area = 0.0
        self.level = 0
        self.peak = 0

    def set(self, level: int) -> None:
        """Change the level now."""
        self._settle()
        self.level = level
        if level > self.peak and self._window.holds(self._env.now):
            self.peak = level

    def mean(self) -> float:
        """Return the mean over the window; call it when the simulation is past the window."""
        self._settle()
        return self._area / (self._window.ends - self._window.begins)

    def _settle(self) -> None:
        now, window = self._env.now, self._window
        if self.level:
            self._area += self.level * max(0.0, min(now, window.ends) - max(self._since, window.begins))
        self._since = now


@dataclass(slots=True)
class Load:
    """The observations of a replica within the window."""

    steps: int = 0
    chunks: int = 0  # of all steps
    fed_tokens: int = 0
    waits_ms: list[float] = field(default_factory=list)  # of requests that were answered, all their waits together


class Replica:
    """One copy of the large model."""

    def __init__(
        self, env: simpy.Environment, step: StepTime, fleet: Fleet, window: Window, watch: Watch | None = None
    ) -> None:
        """Serve with the limits of `fleet`; `watch` is called as each forward begins.

        It receives the time in ms, and of each chunk the session, and the start and end of the text that is fed.
        """
        self._env, self._step, self._window, self._watch = env, step, window, watch
        self._scheduler = fleet.scheduler()
        self.caches = SimulatedCaches(fleet.kv_tokens)
        self._callers: dict[QueuedRequest, Answered] = {}
        self._occupied = False  # a forward runs, or requests are gathered
        self.waiting = Gauge(env, window)
        self.busy = Gauge(env, window)
        self.load = Load()

    def submit(self, request: QueuedRequest, answered: Answered) -> None:
        """Queue a request, and call `answered` at its end. Raises Overloaded if the queue is full."""
        self._scheduler.submit(request, self._env.now / 1e3)
        self._callers[request] = answered
        self._start_next()

    def free(self, key: Hashable) -> None:
        """Forget a session that has no request."""
        self.caches.free(key)

    def _start_next(self, _event: simpy.Event | None = None) -> None:
        if _event is not None:  # the gathering has ended
            self._occupied = False
        if self._occupied:
            self.waiting.set(self._scheduler.queue_length)
            return
        self._release()
        batch, answers = self._scheduler.schedule(self.caches, self._env.now / 1e3)
        self._release()
        self.waiting.set(self._scheduler.queue_length)
        if batch is not None:
            self._compute(batch)
        self._deliver(answers)

    def _compute(self, batch: Batch) -> None:
        now, load = self._env.now, self.load
        starts = [
            self.caches.prepare(chunk.request.key, chunk.request.tree.size, chunk.choices_left)
            for chunk in batch.chunks
        ]
        fed = sum(chunk.end for chunk in batch.chunks) - sum(starts)
        if self._watch is not None:
            self._watch(now, [(c.request.key, at, c.end) for c, at in zip(batch.chunks, starts, strict=True)])
        if self._window.holds(now):
            load.steps += 1
            load.chunks += len(batch.chunks)
            load.fed_tokens += fed
        self._occupied = True
        self.busy.set(1)
        elapsed_ms = self._step(len(batch.chunks), fed)
        self._env.timeout(elapsed_ms).callbacks.append(partial(self._computed, batch, elapsed_ms / 1e3))

    def _computed(self, batch: Batch, elapsed_s: float, _event: simpy.Event) -> None:
        self.busy.set(0)
        for chunk in batch.chunks:
            self.caches.commit(chunk.request.key, chunk.end)
        outcomes: list[Outcome] = [[_CHOICE] * chunk.num_choices for chunk in batch.chunks]
        answers = self._scheduler.complete(outcomes, elapsed_s, self._env.now / 1e3)
        self._env.timeout(gathering_s(elapsed_s) * 1e3).callbacks.append(self._start_next)
        self._deliver(answers)
        self.waiting.set(self._scheduler.queue_length)

    def _deliver(self, answers: Sequence[Answer]) -> None:
        held = self._window.holds(self._env.now)
        for answer in answers:
            if isinstance(answer.outcome, BaseException):
                raise answer.outcome  # nothing here has a deadline, or is cancelled
            if held:
                self.load.waits_ms.append(answer.outcome.queue_us / 1e3)
            self._callers.pop(answer.request)(answer)

    def _release(self) -> None:
        for key in self._scheduler.released():
            self.caches.release(key)
