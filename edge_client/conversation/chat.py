"""Conversations: chats whose turns read only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack, cast, get_args

from chaperone_common.errors import InvalidRequest, PromptTooLong
from chaperone_common.partial import PartialGeneration
from chaperone_common.session import Failed, Finished
from chaperone_common.suggestion import shown
from chaperone_common.types import Mode, PromptInput
from edge_client.caches import ConversationCaches
from edge_client.cancellation import Cancellation
from edge_client.conversation.turns import Message, Turn, Unfinished, Written, grouped, messages_of, said_in
from edge_client.events import Event
from edge_client.generation import Generation, GenerationRequest, Streamer
from edge_client.parameters import (
    OF_METHODS,
    RequestParameters,
    check_names,
    merged,
    parse_max_cloud_share,
    parse_mode,
    parse_params,
    parse_promises,
    plain_names,
)
from edge_client.running import Run, Runs, final_text, whole
from edge_client.text import PromptReader
from edge_client.text.continued import ChatTokens, continued

if TYPE_CHECKING:
    from edge_client.client import EdgeClient

OnOverflow = Literal["refuse", "drop_oldest", "cloud"]
# The other policies that may find room where one does not.
OTHER_POLICIES: Mapping[OnOverflow, str] = {"refuse": "drop_oldest or cloud", "drop_oldest": "", "cloud": "drop_oldest"}
# Parameters that no turn takes; those that only the whole conversation takes, and its further arguments.
_NEVER = dict.fromkeys(("committed_token_ids", "raw"), "a turn of a conversation does not take it; leave it out")
_OF_ALL_TURNS = ("tools", "parse_special")
_ARGUMENTS = ("system", "messages", "on_overflow", "in_place_of")
_OF_TURNS = tuple(name for name in RequestParameters.__annotations__ if name not in (*_NEVER, *_OF_ALL_TURNS))
_ELSEWHERE = {name: f"give {name} to client.conversation({name}=...)" for name in (*_OF_ALL_TURNS, *_ARGUMENTS)}


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
        in_place_of: Conversation | None,
        parameters: RequestParameters,
    ) -> None:
        """See `EdgeClient.conversation`."""
        if on_overflow not in get_args(OnOverflow):
            raise InvalidRequest(f"on_overflow: {shown(on_overflow)} is none of {', '.join(get_args(OnOverflow))}")
        check_names(parameters, (*_OF_TURNS, *_OF_ALL_TURNS, *_ARGUMENTS), _NEVER | OF_METHODS)
        if system is not None and not isinstance(system, str):
            raise InvalidRequest(f"system: {type(system).__name__} is not text; give text, or messages=[...]")
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise InvalidRequest(f"messages: {type(messages).__name__} is not a list; give a list of messages")
        config = client.config
        parse_mode(parameters.get("mode"), config.mode)
        parse_params(plain_names(parameters), config.generation)
        parse_promises(parameters, config.gate)
        parse_max_cloud_share(parameters, config.gate)
        self.on_overflow = on_overflow
        self._client = client
        self._runs = runs
        self._prompts = prompts
        prompts.check(messages, parameters.get("tools"))
        before: list[Message] = [{"role": "system", "content": system}] if system is not None else []
        before += messages
        self._head, self._earlier = grouped(before)
        self._tools = parameters.get("tools")
        self._parse_special = bool(parameters.get("parse_special"))
        self._parameters = cast(RequestParameters, {**plain_names(parameters), "tools": None, "parse_special": None})
        self._turns: tuple[Written, ...] = ()
        self._dropped = 0
        self._caches = in_place_of.release() if in_place_of is not None else ConversationCaches()
        runs.caches.add(self._caches)
        self._unfinished: Unfinished | None = None
        self._writing: Run | None = None
        self._last: Run | None = None  # the turn after which the caches are freed

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns that were written, oldest first."""
        return tuple(turn for turn, _ in self._turns)

    @property
    def messages(self) -> list[Message]:
        """All messages, as the chat template reads them; those that were dropped are missing."""
        return said_in(self._head, self._earlier, self._turns)

    @property
    def busy(self) -> bool:
        """True while a turn is being written."""
        return self._writing is not None

    @property
    def dropped_turns(self) -> int:
        """Turns that were dropped because the context was full; see `on_overflow`. Those of `messages` count, too."""
        return self._dropped

    def rewind(self, turns: int) -> None:
        """Keep the first `turns` turns; a negative number drops that many. Then say something else.

        Raises InvalidRequest if there are not that many, or while a turn is being written.
        """
        self._check_idle()
        count = len(self._turns)
        if isinstance(turns, bool) or not isinstance(turns, int) or not -count <= turns <= count:
            remedy = f"give a number from {-count} to {count}" if count else "generate a turn first"
            raise InvalidRequest(f"turns: {shown(turns)}; the conversation has {count}; {remedy}")
        self._turns = self._turns[:turns]
        self._unfinished = None

    async def regenerate(
        self,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """Write the last turn's reply again, in place of the one before.

        With temperature 0 it is the same text, whatever the seed: give `regenerate(temperature=0.8)`. With a higher
        temperature it differs if the seed does; without a given or configured seed, a new one is drawn.

        The old reply stays if this fails. Raises InvalidRequest if there is no turn, or as `generate` does.
        """
        self._check_idle()
        if not self._turns:
            raise InvalidRequest("regenerate: the conversation has no turn yet; generate one")
        turn, _ = self._turns[-1]
        return await whole(*self._written(turn.messages, parameters, timeout, cancellation, again=True))

    def stream(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        explain: bool = False,
        **parameters: Unpack[RequestParameters],
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of the next turn, as `EdgeClient.stream` does.

        Args:
            message: The user's text; or messages, such as the results of tools; or the `partial` of an error, which
                resumes the turn that failed last.
            timeout: As for `EdgeClient.stream`, and so are `cancellation` and `explain`.
            cancellation: Ends the turn from elsewhere.
            explain: Yield the decisions of the planner, too.
            parameters: As for `EdgeClient.request`, in place of those of the conversation.

        Raises InvalidRequest, also while another turn is being written.
        """
        return self._written(message, parameters, timeout, cancellation, explain=explain)[1]

    def stream_text(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> AsyncGenerator[str, None]:
        """Yield the final text of the next turn, as `EdgeClient.stream_text` does."""
        return final_text(self._written(message, parameters, timeout, cancellation)[1])

    async def generate(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        streamer: Streamer | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """Write the next turn to its end, and return it; `streamer` is as for `EdgeClient.generate`.

        Raises the error of a Failed event. Its `partial` holds the final tokens: `generate(error.partial)` resumes.
        """
        return await whole(*self._written(message, parameters, timeout, cancellation), streamer)

    def release(self) -> ConversationCaches:
        """Return what both ends hold, and begin without it; raises InvalidRequest while a turn is being written."""
        self._check_idle()
        caches, self._caches = self._caches, ConversationCaches()
        self._runs.caches.add(self._caches)
        return caches

    def close(self) -> None:
        """Free what the device keeps between turns. A later turn reads everything again.

        Raises InvalidRequest while a turn is being written.
        """
        self._check_idle()
        self._caches.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; after its end if a turn is still being written, such as a stream that was just left."""
        if self._writing is None:
            self.close()
        self._last = self._writing

    def _written(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        parameters: RequestParameters,
        timeout: float | None,
        cancellation: Cancellation | None,
        *,
        explain: bool = False,
        again: bool = False,
    ) -> tuple[Run, AsyncGenerator[Event, None]]:
        """Return the run of the next turn, and its events. The conversation changes when it has ended.

        With `again` it takes the place of the last turn.
        """
        begun: list[Unfinished] = []

        async def request() -> GenerationRequest:
            turns = self._turns[:-1] if again else self._turns
            unfinished, found = await asyncio.to_thread(self._request, message, turns, parameters)
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
                if self._last is run and not self.busy:
                    self._last = None
                    self._caches.clear()

        return run, events()

    def _leave(self, run: Run) -> None:
        if self._writing is run:  # the next turn may have begun
            self._writing = None

    def _end(self, unfinished: Unfinished, run: Run, event: Finished | Failed) -> None:
        """Add a finished turn; remember one that failed, so that it can be resumed."""
        if isinstance(event, Failed):
            if (partial := event.error.partial) is not None:
                text = unfinished.text + partial.text
                self._unfinished = replace(unfinished, text=text, token_ids=partial.token_ids)
            return
        generation = run.result()
        token_ids = (*run.request.committed_token_ids, *generation.token_ids)
        turn = Turn(unfinished.messages, unfinished.text + generation.text, token_ids, generation)
        self._earlier = unfinished.earlier
        self._turns = (*unfinished.turns, (turn, unfinished.tokens))
        self._dropped += unfinished.dropped
        self._unfinished = None

    # In a thread, since tokenizing a long chat takes time. These methods change nothing.

    def _request(
        self,
        message: str | Message | Sequence[Message] | PartialGeneration,
        turns: tuple[Written, ...],
        parameters: RequestParameters,
    ) -> tuple[Unfinished, GenerationRequest]:
        """Return the next turn, and the request that writes it; raises InvalidRequest."""
        check_names(parameters, _OF_TURNS, _NEVER | _ELSEWHERE | OF_METHODS)
        given = cast(RequestParameters, {name: value for name, value in parameters.items() if value is not None})
        if isinstance(message, PartialGeneration):
            return self._resumed(message, given)
        given = merged(self._parameters, given)
        said, earlier, dropped = messages_of(message), self._earlier, 0
        while True:
            tokens = self._tokens(said, earlier, turns)
            request = self._client.request(PromptInput(tokens.token_ids), **given)
            fits = self._fits(request)
            if fits or self.on_overflow != "drop_oldest" or not (earlier or turns):
                unfinished = Unfinished(said, tokens, earlier, turns, dropped)
                return unfinished, request if fits else self._overflowing(request)
            earlier, turns = (earlier[1:], turns) if earlier else (earlier, turns[1:])
            dropped += 1

    def _fits(self, request: GenerationRequest) -> bool:
        """Return whether the context has room for the reply, or for half a context."""
        limit = self._runs.assembly.context_tokens(request.mode)
        return len(request.prompt.token_ids) + min(request.params.max_new_tokens, limit // 2) <= limit

    def _overflowing(self, request: GenerationRequest) -> GenerationRequest:
        """Return the request for a reply that may be cut, or that the cloud writes alone; raises PromptTooLong."""
        assembly, mode = self._runs.assembly, request.mode
        length, limit = len(request.prompt.token_ids), assembly.context_tokens(mode)
        cloud = assembly.cloud_context_tokens  # None until a cloud has answered
        bounded = mode is Mode.GATED and request.max_cloud_share is not None
        allowed = mode in (Mode.EXACT, Mode.GATED) and not bounded
        if self.on_overflow == "cloud" and allowed and (cloud is None or cloud > limit):
            return replace(request, mode=Mode.CLOUD)
        if length >= limit:
            others = OTHER_POLICIES[self.on_overflow]
            raise PromptTooLong(
                f"prompt: the conversation has {length} tokens, and leaves no room in a context of {limit}",
                remedy="shorten the message"
                + (f", rewind the conversation, or set on_overflow to {others}" if others else ""),
            )
        return request

    def _resumed(self, partial: PartialGeneration, given: RequestParameters) -> tuple[Unfinished, GenerationRequest]:
        unfinished = self._unfinished
        mine = (unfinished.tokens.token_ids, unfinished.token_ids) if unfinished is not None else None
        if unfinished is None or mine != (partial.prompt_token_ids, partial.token_ids):
            raise InvalidRequest("message: this partial is not of the turn that failed last; begin the turn again")
        return unfinished, self._client.request(partial, **given)

    def _tokens(
        self, said: tuple[Message, ...], earlier: tuple[tuple[Message, ...], ...], turns: tuple[Written, ...]
    ) -> ChatTokens:
        """Return the tokens of the conversation and the next messages; those of replies stay as they were written."""
        prompt = self._prompts.tokens(
            [*said_in(self._head, earlier, turns), *said],
            parse_special=self._parse_special,
            tools=self._tools,
            contexts=len(earlier) + len(turns) + 1,  # each turn fits into one; `_fits` looks at all together
        )
        if not turns:
            return ChatTokens(prompt.token_ids, prompt.token_ids)
        turn, before = turns[-1]
        return continued(before, turn.token_ids, turn.text, prompt.token_ids, self._client.tokenizer)

    def _check_idle(self) -> None:
        if self._writing is not None:
            raise InvalidRequest("conversation: a turn is being written; wait for its end, or cancel it")
