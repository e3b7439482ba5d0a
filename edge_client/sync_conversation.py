"""`Conversation` for code without an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Any, Self, Unpack, cast

from chaperone_common.errors import InvalidRequest
from chaperone_common.partial import PartialGeneration
from edge_client.cancellation import Cancellation
from edge_client.conversation import Conversation, Message, Turn
from edge_client.events import Event
from edge_client.generation import Generation, Streamer
from edge_client.parameters import RequestParameters
from edge_client.running import text_of


class SyncConversation:
    """`Conversation` for code without an event loop; `SyncEdgeClient.conversation` makes it."""

    def __init__(
        self,
        conversation: Conversation,
        run: Callable[..., Any],
        iterated: Callable[[AsyncGenerator[Event, None]], Iterator[Event]],
    ) -> None:
        """`run` and `iterated` are those of the client: they use its loop."""
        self.conversation = conversation
        self._run = run
        self._iterated = iterated

    @property
    def turns(self) -> tuple[Turn, ...]:
        """See `Conversation.turns`."""
        return self.conversation.turns

    @property
    def messages(self) -> list[Message]:
        """See `Conversation.messages`."""
        return self.conversation.messages

    @property
    def busy(self) -> bool:
        """See `Conversation.busy`."""
        return self.conversation.busy

    @property
    def dropped_turns(self) -> int:
        """See `Conversation.dropped_turns`."""
        return self.conversation.dropped_turns

    def rewind(self, turns: int) -> None:
        """See `Conversation.rewind`."""
        self.conversation.rewind(turns)

    def regenerate(
        self,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """See `Conversation.regenerate`."""
        generation: Generation = self._run(
            self.conversation.regenerate, timeout=timeout, cancellation=cancellation, **parameters
        )
        return generation

    def stream(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        explain: bool = False,
        **parameters: Unpack[RequestParameters],
    ) -> Iterator[Event]:
        """See `Conversation.stream`."""
        return self._iterated(
            self.conversation.stream(message, timeout=timeout, cancellation=cancellation, explain=explain, **parameters)
        )

    def stream_text(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Iterator[str]:
        """See `Conversation.stream_text`."""
        return final_text(self.stream(message, timeout=timeout, cancellation=cancellation, **parameters))

    def generate(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        streamer: Streamer | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """See `Conversation.generate`."""
        generation: Generation = self._run(
            self.conversation.generate,
            message,
            timeout=timeout,
            cancellation=cancellation,
            streamer=streamer,
            **parameters,
        )
        return generation

    def close(self) -> None:
        """See `Conversation.close`."""
        self.conversation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(InvalidRequest):  # the client was closed, and has freed everything
            self._run(self.conversation.__aexit__, kind, error, trace)


def final_text(events: Iterator[Event]) -> Iterator[str]:
    """Yield the text of final tokens, as it comes; raises the error of a Failed event."""
    with closing(cast(Generator[Event, None, None], events)) as received:
        for event in received:
            if text := text_of(event):
                yield text
