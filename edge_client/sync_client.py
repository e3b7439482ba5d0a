"""`EdgeClient` for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from common.errors import InvalidRequest
from common.gate import Totals
from common.messages import Capabilities
from common.session import Event
from common.types import PromptInput, Proposal
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig
from edge_client.generation import Generation, GenerationRequest, Prompt

P = ParamSpec("P")
T = TypeVar("T")

_LEAVE_SECONDS = 5.0


class SyncEdgeClient:
    """`EdgeClient` for code without an event loop: one private loop thread, the same methods."""

    def __init__(self, config: EdgeConfig | None = None) -> None:
        self._client = EdgeClient(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaperone-client", daemon=True)
        self._thread.start()

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """Build a client from a YAML file such as `configs/edge.yaml`."""
        return cls(EdgeConfig.load(path))

    def prepare(self, prompt: Prompt, *, raw: bool = False) -> PromptInput:
        """See `EdgeClient.prepare`."""
        return self._client.prepare(prompt, raw=raw)

    def request(self, prompt: Prompt, **parameters: Any) -> GenerationRequest:
        """See `EdgeClient.request`."""
        return self._client.request(prompt, **parameters)

    def stream(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> Iterator[Event]:
        """See `EdgeClient.stream`."""
        events = self._client.stream(prompt, **parameters)
        try:
            while (event := self._run(_next, events)) is not None:
                yield event
        finally:
            if not self._loop.is_closed():
                self._run(events.aclose)

    def generate(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> Generation:
        """See `EdgeClient.generate`."""
        return self._run(self._client.generate, prompt, **parameters)

    def totals(self, *, catch: float | None = None, max_deviation: float | None = None) -> Totals:
        """See `EdgeClient.totals`."""
        return self._client.totals(catch=catch, max_deviation=max_deviation)

    def capabilities(self) -> Capabilities:
        """See `EdgeClient.capabilities`."""
        return self._run(self._client.capabilities)

    def proposals(self, request: GenerationRequest, token_ids: Sequence[int]) -> list[Proposal]:
        """See `EdgeClient.proposals`."""
        return self._run(self._client.proposals, request, token_ids)

    def close(self) -> None:
        """End connection, model worker and loop thread; idempotent."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._client.aclose)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` on the loop's thread, which begins, cancels and ends it: Ctrl-C strikes only the caller's."""
        if self._loop.is_closed():
            raise InvalidRequest("client: it is closed; make a new one")
        task: asyncio.Task[T] | None = None
        answer: SimpleQueue[asyncio.Task[T]] = SimpleQueue()  # a `Future` waits in Python, and breaks when interrupted
        gone: SimpleQueue[None] = SimpleQueue()

        def begin() -> None:
            nonlocal task
            task = self._loop.create_task(work(*args, **kwargs))
            task.add_done_callback(answer.put)

        def leave() -> None:
            if task is None:  # the interrupt came before it was to begin, and it never will
                gone.put(None)
            else:
                task.cancel()
                task.add_done_callback(lambda _: gone.put(None))

        try:
            self._loop.call_soon_threadsafe(begin)
            ended = answer.get()
        except BaseException:  # the work must not go on behind the caller's back
            self._loop.call_soon_threadsafe(leave)
            with suppress(Empty):
                gone.get(timeout=_LEAVE_SECONDS)
            raise
        return ended.result()


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)
