"""The chats of an endpoint: each request brings the whole chat, and both ends may hold its beginning."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NamedTuple

from chaperone_common.errors import PromptTooLong
from chaperone_common.session import Finished
from edge_client.client import EdgeClient
from edge_client.conversation import OTHER_POLICIES, Conversation, OnOverflow
from edge_client.events import Event
from edge_client.parameters import RequestParameters

MOST_CHATS = 4  # each holds keys and values on the device

Messages = list[dict[str, Any]]


class _Chat(NamedTuple):
    messages: Messages
    conversation: Conversation  # that both ends hold the tokens of


class Chats:
    """The last chats that are not being written, newest last.

    A reply is a function of its request alone: the chat is tokenized as a whole, and what both ends hold of it only
    saves them work.
    """

    def __init__(self, client: EdgeClient, most: int = MOST_CHATS) -> None:
        self._client = client
        self._most = most
        self._kept: list[_Chat] = []

    async def written(
        self, messages: Messages, on_overflow: OnOverflow, parameters: RequestParameters
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of the reply to a chat, as `EdgeClient.stream` does."""
        chat = self._client.conversation(
            messages=messages[:-1], on_overflow=on_overflow, in_place_of=self._taken(messages)
        )
        kept = False
        try:
            async with aclosing(chat.stream(messages[-1:], **parameters)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        kept = True
                        self._keep(_Chat(messages, chat))
                    yield event
        except PromptTooLong as error:
            if not error.remedy:
                raise
            raise PromptTooLong(error.problem, remedy=_remedy(on_overflow)) from None
        finally:
            if not kept:  # it failed, or its reader left: the device's memory must not wait for a garbage collection
                chat.close()

    def _taken(self, messages: Messages) -> Conversation | None:
        """Take the chat with the most messages in common; None if none has more than instructions in common."""
        common = [_common(chat.messages, messages) for chat in self._kept]
        most = max(common, default=0)
        if not any(message["role"] != "system" for message in messages[:most]):
            return None
        return self._kept.pop(common.index(most)).conversation

    def _keep(self, chat: _Chat) -> None:
        self._kept.append(chat)
        for old in self._kept[: -self._most]:
            old.conversation.close()
        self._kept = self._kept[-self._most :]


def _remedy(on_overflow: OnOverflow) -> str:
    """Return what a caller of the endpoint can do about a chat that is too long."""
    others = OTHER_POLICIES[on_overflow]
    return "shorten messages" + (f", or set chaperone.on_overflow to {others}" if others else "")


def _common(left: Messages, right: Messages) -> int:
    """Return how many leading messages two chats share."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(left), len(right)))
