"""The chats of an endpoint: each request brings the whole chat, and goes on with the conversation that holds it."""

from __future__ import annotations

from typing import Any

from edge_client.client import EdgeClient
from edge_client.conversation import Conversation, OnOverflow

MOST_CHATS = 4  # each holds keys and values on the device


class Chats:
    """The last conversations, newest last."""

    def __init__(self, client: EdgeClient, most: int = MOST_CHATS) -> None:
        self._client = client
        self._most = most
        self._kept: list[Conversation] = []

    def continued(
        self, messages: list[dict[str, Any]], on_overflow: OnOverflow
    ) -> tuple[Conversation, list[dict[str, Any]]]:
        """Return the conversation that begins with most of these messages, and the messages that are new to it.

        A reply may be asked for again: the conversation is then rewound. One that is being written is left alone.
        Raises InvalidRequest.
        """
        for chat in reversed(self._kept):
            turns = _turns_of(chat, messages)
            if turns and not chat.busy and chat.on_overflow == on_overflow:
                chat.rewind(turns)
                self._kept.remove(chat)
                self._kept.append(chat)
                return chat, messages[len(chat.messages) :]
        chat = self._client.conversation(messages=messages[:-1], on_overflow=on_overflow)
        self._kept.append(chat)
        for old in self._kept[: -self._most]:
            if not old.busy:
                old.close()
                self._kept.remove(old)
        return chat, messages[-1:]


def _turns_of(chat: Conversation, messages: list[dict[str, Any]]) -> int:
    """Return how many of a conversation's turns the messages begin with, with something to say after them."""
    known, length, turns = chat.messages, len(chat.messages) - 2 * len(chat.turns), 0
    if known[:length] != messages[:length]:
        return 0
    for turn in chat.turns:
        after = length + len(turn.messages) + 1
        if after >= len(messages) or known[length:after] != messages[length:after]:
            break
        length, turns = after, turns + 1
    return turns
