"""The cloud's side of one generation: the prompt, then one request after the other, each of one or more forwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import simpy

from benchmarks.fleet.replica import Replica, Window
from chaperone_common.errors import ConfigError, Overloaded
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import Urgency
from cloud_supervisor.scheduling.batch import Answer, QueuedRequest

_SAMPLING = SamplingParams()


@dataclass(slots=True)
class Latencies:
    """Latencies in ms of the requests of a replica that were sent within the window."""

    verification_ms: list[float] = field(default_factory=list)  # the round trip, the queue and the forward
    writing_ms: list[float] = field(default_factory=list)  # queue and forward of each token that the cloud writes
    prompt_ms: list[float] = field(default_factory=list)  # from the arrival of a prompt until it was read
    refused: int = 0  # requests that found a full queue, and were sent again


class Conversation:
    """A session at its replica. It has one request at a time, as in the service."""

    def __init__(
        self, replica: Replica, env: simpy.Environment, window: Window, latencies: Latencies, key: int, tenant: str,
        rtt_ms: float, kv_tokens: int,
    ) -> None:  # fmt: skip
        self._replica, self._env, self._window, self._latencies = replica, env, window, latencies
        self._key, self._tenant, self._rtt_ms, self._kv_tokens = key, tenant, rtt_ms, kv_tokens
        self._length = 0  # tokens of the text that the cloud has read
        self._reading = False
        self._arrived = False
        self._forwards: list[int] = []  # tokens of those that the request still needs, the last one first
        self._request: QueuedRequest | None = None
        self._since = 0.0  # when the request, or its part, could first be queued
        self._first_at: float | None = None
        self._done: simpy.Event | None = None

    def open(self, prompt_tokens: int) -> None:
        """Send the prompt. All but its last token are read at once; the first verification reads that one."""
        if prompt_tokens > 1:
            self._reading = True
            self._length = prompt_tokens - 1
            self._after(self._rtt_ms / 2, self._read)

    def ask(self, forwards: tuple[int, ...]) -> simpy.Event:
        """Send a request; the event triggers at its end, with the time at which its first token was at the device."""
        self._forwards = [*reversed(forwards)]
        self._first_at = None
        self._done = self._env.event()
        self._after(self._rtt_ms / 2, self._arrive)
        return self._done

    def close(self) -> None:
        """Free the session's cache."""
        self._replica.free(self._key)

    def _read(self, _event: simpy.Event) -> None:
        self._queue(0, Urgency.READ)

    def _arrive(self, _event: simpy.Event) -> None:
        if self._reading:
            self._arrived = True
        else:
            self._next(Urgency.VERIFY)

    def _next(self, urgency: Urgency) -> None:
        tokens = self._forwards.pop()
        self._length += tokens
        self._queue(tokens, urgency)

    def _queue(self, num_choices: int, urgency: Urgency) -> None:
        if self._length > self._kv_tokens:
            raise ConfigError(f"kv_tokens: {self._kv_tokens} hold no text of {self._length} tokens; raise it")
        tree = TokenTree((0,) * self._length)
        self._request = QueuedRequest(self._key, tree, num_choices, _SAMPLING, None, self._tenant, urgency)
        self._since = self._env.now
        self._submit()

    def _submit(self, _event: simpy.Event | None = None) -> None:
        assert self._request is not None, "a request was made"
        try:
            self._replica.submit(self._request, self._answered)
        except Overloaded as error:
            self._latencies.refused += 1
            self._after((error.retry_after_ms or 0) + self._rtt_ms, self._submit)

    def _answered(self, answer: Answer) -> None:
        now, latencies, urgency = self._env.now, self._latencies, answer.request.urgency
        elapsed_ms = now - self._since
        if urgency is Urgency.READ:
            self._reading = False
            if self._window.holds(self._since):
                latencies.prompt_ms.append(elapsed_ms)
            if self._arrived:
                self._next(Urgency.VERIFY)
            return
        if self._window.holds(self._since):
            if urgency is Urgency.VERIFY:
                latencies.verification_ms.append(elapsed_ms + self._rtt_ms)
            else:
                latencies.writing_ms.append(elapsed_ms)
        if self._first_at is None:
            self._first_at = now + self._rtt_ms / 2
        if self._forwards:
            self._next(Urgency.WRITE)
        else:
            self._after(self._rtt_ms / 2, self._finish)

    def _finish(self, _event: simpy.Event) -> None:
        assert self._done is not None, "a request was made"
        self._done.succeed(self._first_at)

    def _after(self, delay_ms: float, then: Callable[[simpy.Event], None]) -> None:
        self._env.timeout(delay_ms).callbacks.append(then)
