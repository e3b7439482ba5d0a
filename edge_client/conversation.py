"""Conversations: chats whose turns read only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, get_args

from chaperone_common.errors import InvalidRequest, PromptTooLong
from chaperone_common.partial import PartialGeneration
from chaperone_common.session import Event, Failed, Finished
from chaperone_common.types import Mode, PromptInput
from edge_client.caches import ConversationCaches
from edge_client.cancellation import Cancellation
from edge_client.generation import Generation, GenerationRequest
from edge_client.parameters import RequestParameters, check_names
from edge_client.planner import Decision
from edge_client.running import Run, Runs
from edge_client.text import PromptReader
from edge_client.text.continued import ChatTokens, continued

if TYPE_CHECKING:
    from edge_client.client import EdgeClient

Message = Mapping[str, Any]
OnOverflow = Literal["refuse", "drop_oldest", "cloud"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user, and the reply."""

    messages: tuple[Message, ...]
    text: str  # of the reply
    token_ids: tuple[int, ...]  # of the reply
    generation: Generation  # its last part, if it failed before and was resumed


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """A turn whose reply was not written to its end."""

    messages: tuple[Message, ...]
    tokens: ChatTokens
    text: str = ""  # of the reply, as far as it is final


class Conversation:
    """A chat that grows turn by turn; `EdgeClient.conversation` makes it.

        chat = client.conversation(system="Answer briefly.")
        print((await chat.generate("What is a monad?")).text)
        async for event in chat.stream("And in one word?"):
            print(event.text, end="")

    Both ends keep what they have read, so that a turn costs only its own tokens. Positions count from the start of the
    conversation. One turn is written at a time. A turn that fails or is cancelled is no part of the conversation.
    """

    def __init__(
        self,
        client: EdgeClient,
        runs: Runs,
        prompts: PromptReader,
        *,
        system: str | None,
        messages: Sequence[Message],
        on_overflow: OnOverflow,
        parameters: RequestParameters,
    ) -> None:
        """See `EdgeClient.conversation`."""
        if on_overflow not in get_args(OnOverflow):
            raise InvalidRequest(f"on_overflow: {on_overflow!r} is none of {', '.join(get_args(OnOverflow))}")
        check_names(parameters)
        _refuse(parameters, "committed_token_ids", "raw")
        self.on_overflow = on_overflow
        self._client = client
        self._runs = runs
        self._prompts = prompts
        self._first = ([{"role": "system", "content": system}] if system is not None else []) + [*messages]
        self._tools = parameters.get("tools")
        self._parameters = cast(RequestParameters, {**parameters, "tools": None})
        self._turns: list[tuple[Turn, ChatTokens]] = []
        self._dropped = 0
        self._caches = ConversationCaches()
        self._unfinished: _Unfinished | None = None
        self._writing: Run | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns that were written, oldest first."""
        return tuple(turn for turn, _ in self._turns)

    @property
    def messages(self) -> list[Message]:
        """All messages, as the chat template reads them; those of dropped turns are missing."""
        said: list[Message] = [*self._first]
        for turn in self.turns:
            said += [*turn.messages, {"role": "assistant", "content": turn.text}]
        return said

    @property
    def busy(self) -> bool:
        """True while a turn is being written."""
        return self._writing is not None

    @property
    def dropped_turns(self) -> int:
        """Turns that were dropped because the context was full; see `on_overflow`."""
        return self._dropped

    def rewind(self, turns: int) -> None:
        """Keep the first `turns` turns; a negative number drops that many. Then say something else.

        Raises InvalidRequest if there are not that many, or while a turn is being written.
        """
        self._check_idle()
        count = len(self._turns)
        if isinstance(turns, bool) or not isinstance(turns, int) or not -count <= turns <= count:
            raise InvalidRequest(f"turns: {turns!r}; the conversation has {count}")
        del self._turns[turns:]
        self._unfinished = None

    async def regenerate(
        self,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """Write the last turn's reply again, in place of the one before; it differs if the seed does.

        The old reply stays if this fails. Raises InvalidRequest if there is no turn, or as `generate` does.
        """
        self._check_idle()
        if not self._turns:
            raise InvalidRequest("regenerate: the conversation has no turn yet; generate one")
        last = self._turns.pop()
        try:
            return await self.generate(last[0].messages, timeout=timeout, cancellation=cancellation, **parameters)
        except BaseException:
            self._turns.append(last)
            raise

    def stream(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        explain: Callable[[Decision], None] | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of the next turn, as `EdgeClient.stream` does.

        Args:
            message: The user's text; or messages, such as the results of tools; or the `partial` of an error, which
                resumes the turn that failed last.
            timeout: As for `EdgeClient.stream`, and so are `cancellation` and `explain`.
            cancellation: Ends the turn from elsewhere.
            explain: Receives the decisions of this turn.
            parameters: As for `EdgeClient.request`, in place of those of the conversation.

        Raises InvalidRequest, also while another turn is being written.
        """
        return self._written(message, parameters, timeout, cancellation, explain)[1]

    async def generate(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        explain: Callable[[Decision], None] | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """Write the next turn to its end, and return it; the arguments are those of `stream`.

        Raises the error of a Failed event. Its `partial` holds the final tokens: `generate(error.partial)` resumes.
        """
        run, turn_events = self._written(message, parameters, timeout, cancellation, explain)
        async with aclosing(turn_events) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise event.error
        return run.result()

    def close(self) -> None:
        """Free what the device keeps between turns. A later turn reads everything again."""
        self._caches.clear()

    def _written(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        parameters: RequestParameters,
        timeout: float | None,
        cancellation: Cancellation | None,
        explain: Callable[[Decision], None] | None,
    ) -> tuple[Run, AsyncGenerator[Event, None]]:
        begun: list[_Unfinished] = []

        async def request() -> GenerationRequest:
            unfinished, found = await asyncio.to_thread(self._request, message, parameters)
            begun.append(unfinished)
            return found

        run = Run(
            self._runs,
            request,
            timeout=timeout,
            cancellation=cancellation,
            explain=explain,
            caches=self._caches,
        )

        async def events() -> AsyncGenerator[Event, None]:
            self._check_idle()
            self._writing = run
            try:
                async with aclosing(run.events()) as written:
                    async for event in written:
                        if isinstance(event, Finished | Failed):
                            self._leave(run)  # nothing follows, and the caller may never ask for it
                            if begun:
                                self._end(begun[0], run, event)
                        yield event
            finally:
                self._leave(run)

        return run, events()

    def _leave(self, run: Run) -> None:
        if self._writing is run:  # the next turn may have begun
            self._writing = None

    def _end(self, unfinished: _Unfinished, run: Run, event: Finished | Failed) -> None:
        """Add a finished turn; remember one that failed, so that it can be resumed."""
        if isinstance(event, Failed):
            partial = event.error.partial
            text = unfinished.text + (partial.text if partial is not None else "")
            self._unfinished = replace(unfinished, text=text)
            return
        generation = run.result()
        token_ids = (*run.request.committed_token_ids, *generation.token_ids)
        turn = Turn(unfinished.messages, unfinished.text + generation.text, token_ids, generation)
        self._turns.append((turn, unfinished.tokens))
        self._unfinished = None

    def _request(
        self, message: str | Message | Sequence[Message] | PartialGeneration, parameters: RequestParameters
    ) -> tuple[_Unfinished, GenerationRequest]:
        given = cast(RequestParameters, {name: value for name, value in parameters.items() if value is not None})
        if isinstance(message, PartialGeneration):
            return self._resumed(message, given)
        _refuse(given, "committed_token_ids", "raw", "tools")
        given = cast(RequestParameters, {**self._parameters, **given})
        parse_special = given.pop("parse_special", False)
        said = _messages(message)
        while True:
            tokens = self._tokens(said, parse_special=parse_special)
            request = self._client.request(PromptInput(tokens.token_ids), **given)
            fitting = self._fitting(request)
            if fitting is not None:
                return _Unfinished(said, tokens), fitting

    def _fitting(self, request: GenerationRequest) -> GenerationRequest | None:
        """Return a request that fits into the context; None if a turn was dropped for that, so that it changes."""
        length, limit = len(request.prompt.token_ids), self._runs.assembly.context_tokens(request.mode)
        if length + request.params.max_new_tokens <= limit:
            return request
        if self.on_overflow == "drop_oldest" and self._turns:
            del self._turns[0]
            self._dropped += 1
            return None
        if self.on_overflow == "cloud" and request.mode is not Mode.CLOUD:
            return replace(request, mode=Mode.CLOUD)
        if length >= limit:
            raise PromptTooLong(
                f"prompt: the conversation has {length} tokens, and leaves no room in a context of {limit}; rewind it, "
                "or set on_overflow to drop_oldest or cloud"
            )
        return request

    def _resumed(self, partial: PartialGeneration, given: RequestParameters) -> tuple[_Unfinished, GenerationRequest]:
        unfinished = self._unfinished
        if unfinished is None or partial.prompt_token_ids != unfinished.tokens.token_ids:
            raise InvalidRequest("message: this partial is not of the turn that failed last; begin the turn again")
        return unfinished, self._client.request(partial, **given)

    def _tokens(self, said: tuple[Message, ...], *, parse_special: bool | None) -> ChatTokens:
        """Return the tokens of the conversation and the next messages; those of replies stay as they were written."""
        prompt = self._prompts.tokens(
            [*self.messages, *said],
            parse_special=bool(parse_special),
            tools=self._tools,
            contexts=len(self._turns) + 1,  # each turn fits into one; `_fitting` looks at all together
        )
        if not self._turns:
            return ChatTokens(prompt.token_ids, prompt.token_ids)
        turn, before = self._turns[-1]
        return continued(before, turn.token_ids, turn.text, prompt.token_ids, self._client.tokenizer)

    def _check_idle(self) -> None:
        if self._writing is not None:
            raise InvalidRequest("conversation: a turn is being written; wait for its end, or cancel it")


def _refuse(parameters: RequestParameters, *names: str) -> None:
    for name in names:
        if parameters.get(name) is not None:
            raise InvalidRequest(f"{name}: a turn of a conversation does not take it; leave it out")


def _messages(message: str | Message | Sequence[Message]) -> tuple[Message, ...]:
    if isinstance(message, str):
        if not message.strip():
            raise InvalidRequest("message: it is empty; give some text")
        return ({"role": "user", "content": message},)
    return (message,) if isinstance(message, Mapping) else tuple(message)
