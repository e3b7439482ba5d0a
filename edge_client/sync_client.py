"""`EdgeClient` for code without an event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Never, ParamSpec, Self, TypeVar, Unpack

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import Cancelled, InvalidRequest
from chaperone_common.frames import Capabilities
from chaperone_common.partial import PartialGeneration
from chaperone_common.session import Failed, Finished
from chaperone_common.types import Mode, PromptInput, Proposal
from edge_client.cancellation import Cancellation
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig, checked_config, pretrained, refuse_arguments
from edge_client.conversation import Message, OnOverflow
from edge_client.events import Event
from edge_client.gate import Gate, Totals
from edge_client.generation import Generation, GenerationRequest, Prompt, Streamer
from edge_client.journal import JournalState
from edge_client.parameters import RequestParameters
from edge_client.planner import Planner
from edge_client.sync_conversation import SyncConversation, final_text
from edge_client.text import Tokenizer

P = ParamSpec("P")
T = TypeVar("T")

_CLOSED = "generation: the client was closed"
_LEAVE_SECONDS = 5.0
_LOOK_SECONDS = 0.5  # between checks whether another thread has closed the client


class SyncEdgeClient:
    """`EdgeClient` for code without an event loop: the same methods without `async`.

        with SyncEdgeClient.from_config("edge.yaml") as client:
            print(client.generate("Write a haiku.").text)

    An event loop runs in a private thread. Any thread may call the methods.

    The attributes are those of `EdgeClient`. Only that one takes `cloud` and `drafter`, whose objects belong to a loop.
    """

    config: EdgeConfig
    manifest: ModelManifest
    tokenizer: Tokenizer

    def __init__(
        self,
        config: EdgeConfig | None = None,
        *,
        planner: Callable[[Mode], Planner] | None = None,
        gate: Callable[[Mode], Gate] | None = None,
        tracer: Any = None,
        folder: Path | None = None,
        **unknown: Never,
    ) -> None:
        """See `EdgeClient`; the loop's thread calls the given functions."""
        refuse_arguments("SyncEdgeClient", unknown)
        self._client = EdgeClient(config, planner=planner, gate=gate, tracer=tracer, folder=folder)
        self.config, self.manifest = self._client.config, self._client.manifest
        self.tokenizer = self._client.tokenizer
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)  # a factory: not the caller's current loop
        self._loop = self._runner.get_loop()
        self._process = os.getpid()
        self._closing = asyncio.Event()
        self._over = False  # the loop only cancels what runs on it, and ends
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="chaperone-client", daemon=True)
        self._thread.start()

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """Build a client from a YAML file such as `edge.yaml`."""
        return cls(EdgeConfig.load(path))

    @classmethod
    def from_pretrained(
        cls,
        pair_or_path: str | Path,
        *,
        cloud: str | Sequence[str] | None = None,
        config: EdgeConfig | None = None,
    ) -> Self:
        """See `EdgeClient.from_pretrained`."""
        settings, folder = pretrained(pair_or_path, cloud, checked_config(config))
        return cls(settings, folder=folder)

    def prepare(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        parse_special: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> PromptInput:
        """See `EdgeClient.prepare`."""
        return self._client.prepare(prompt, raw=raw, parse_special=parse_special, tools=tools)

    def request(self, prompt: Prompt | PartialGeneration, **parameters: Unpack[RequestParameters]) -> GenerationRequest:
        """See `EdgeClient.request`."""
        return self._client.request(prompt, **parameters)

    def stream(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        explain: bool = False,
        **parameters: Unpack[RequestParameters],
    ) -> Iterator[Event]:
        """See `EdgeClient.stream`; another thread ends it by `cancellation`."""
        return self._iterated(
            self._client.stream(prompt, timeout=timeout, cancellation=cancellation, explain=explain, **parameters)
        )

    def conversation(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Message] = (),
        on_overflow: OnOverflow = "refuse",
        in_place_of: SyncConversation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> SyncConversation:
        """See `EdgeClient.conversation`."""
        before = in_place_of.conversation if in_place_of is not None else None
        chat = self._client.conversation(
            system, messages=messages, on_overflow=on_overflow, in_place_of=before, **parameters
        )
        return SyncConversation(chat, self._run, self._iterated)

    def _iterated(self, events: AsyncGenerator[Event, None]) -> Iterator[Event]:
        try:
            while (event := self._run(_next, events)) is not None:
                yield event
                if isinstance(event, Finished | Failed):  # nothing follows; the client may be closed by now
                    return
            raise Cancelled(_CLOSED)  # between two events
        finally:
            # The garbage collector may end a forgotten stream in the loop's thread, where asyncio closes `events`, or
            # at the exit of Python, where nothing has to be closed.
            if threading.current_thread() is not self._thread and not sys.is_finalizing():
                with suppress(InvalidRequest, Cancelled):  # the client was closed, and has ended it
                    self._run(events.aclose)

    def stream_text(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Iterator[str]:
        """See `EdgeClient.stream_text`."""
        return final_text(self.stream(prompt, timeout=timeout, cancellation=cancellation, **parameters))

    def generate(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        streamer: Streamer | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """See `EdgeClient.generate`; another thread ends it by `cancellation`. The loop's thread calls `streamer`."""
        return self._run(
            self._client.generate, prompt, timeout=timeout, cancellation=cancellation, streamer=streamer, **parameters
        )

    def totals(self, *, catch: float | None = None, max_deviation: float | None = None) -> Totals:
        """See `EdgeClient.totals`."""
        return self._client.totals(catch=catch, max_deviation=max_deviation)

    @property
    def journal(self) -> JournalState | None:
        """See `EdgeClient.journal`."""
        return self._client.journal

    def audit_journal(self) -> JournalState:
        """See `EdgeClient.audit_journal`."""
        return self._run(self._client.audit_journal)

    def capabilities(self) -> Capabilities:
        """See `EdgeClient.capabilities`."""
        return self._run(self._client.capabilities)

    def load(self) -> None:
        """See `EdgeClient.load`."""
        self._run(self._client.load)

    def proposals(self, request: GenerationRequest, token_ids: Sequence[int]) -> list[Proposal]:
        """See `EdgeClient.proposals`."""
        return self._run(self._client.proposals, request, token_ids)

    def token_text(self, token_id: int) -> str:
        """See `EdgeClient.token_text`."""
        return self._client.token_text(token_id)

    def close(self) -> None:
        """End the connection, the model's worker and the loop's thread; cancel running generations. Idempotent."""
        if self._process != os.getpid():  # the loop's thread belongs to the parent process
            return
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._closing.set)
        while not self._loop.is_closed():
            with suppress(Empty):
                self._ended.get(timeout=_LOOK_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            with self._runner:
                self._runner.run(self._until_closed())
        finally:
            self._ended.put(None)

    async def _until_closed(self) -> None:
        await self._closing.wait()
        await self._client.aclose()
        self._over = True

    def _run(self, work: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on the loop's thread, and wait for its result. Ctrl-C interrupts the calling thread only.

        The wait uses a SimpleQueue, which is implemented in C. An interrupt in `Future.result` or `Event.wait` can
        leave their locks held.
        """
        task: asyncio.Task[T] | None = None
        answer: SimpleQueue[asyncio.Task[T]] = SimpleQueue()
        gone: SimpleQueue[None] = SimpleQueue()

        async def do() -> T:
            return await work(*args, **kwargs)

        def begin() -> None:
            nonlocal task
            if not self._over:  # a later task would never end
                task = self._loop.create_task(do())
                task.add_done_callback(answer.put)

        def left(ended: asyncio.Task[T]) -> None:
            ended.cancelled() or ended.exception()  # mark its error as retrieved
            gone.put(None)

        def leave() -> None:
            if task is None:  # interrupted before it began, and it never will
                gone.put(None)
            else:
                task.cancel()
                task.add_done_callback(left)

        try:
            self._schedule(begin)
            ended = self._wait(answer)
        except BaseException:  # the work must not outlive the call
            with suppress(InvalidRequest, Empty):  # the client was closed, or the work is slow to end
                self._schedule(leave)
                gone.get(timeout=_LEAVE_SECONDS)
            raise
        if ended.cancelled():
            raise Cancelled(_CLOSED)
        return ended.result()

    def _schedule(self, callback: Callable[[], None]) -> None:
        if self._process != os.getpid():
            raise InvalidRequest("client: it was made in another process; make a new one after the fork")
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            raise InvalidRequest("client: it is closed; make a new one") from None

    def _wait(self, answer: SimpleQueue[asyncio.Task[T]]) -> asyncio.Task[T]:
        while True:
            with suppress(Empty):
                return answer.get(timeout=_LOOK_SECONDS)
            if self._loop.is_closed():  # the loop ended before the work began
                raise Cancelled(_CLOSED)


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)
