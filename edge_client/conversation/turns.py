"""Turns of a conversation, finished or not, and the messages that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaperone_common.errors import InvalidRequest
from chaperone_common.suggestion import shown, summary
from edge_client.generation import Generation
from edge_client.text.continued import ChatTokens

Message = Mapping[str, Any]
_NAMED = 3  # messages of a turn that its `repr` has


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user, and the reply."""

    messages: tuple[Message, ...]
    text: str  # of the reply
    token_ids: tuple[int, ...]  # of the reply
    generation: Generation  # its last part, if it failed before and was resumed

    def __repr__(self) -> str:
        """Return the beginning of each text, for a prompt of Python; the attributes have all of it."""
        said = [f"{message.get('role')}: {_beginning(message.get('content'))}" for message in self.messages[:_NAMED]]
        more = len(self.messages) - len(said)
        said += [f"{more} more messages"] if more else []
        return f"Turn({', '.join(said)}, assistant: {summary(self.text, len(self.token_ids))})"


Written = tuple[Turn, ChatTokens]  # a turn, and the tokens of the chat before its reply


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A turn whose reply was not written to its end, and the conversation that it belongs to."""

    messages: tuple[Message, ...]
    tokens: ChatTokens
    earlier: tuple[tuple[Message, ...], ...]  # what was said before the first turn and not dropped
    turns: tuple[Written, ...]  # those before this one that were not dropped
    dropped: int  # for this turn
    text: str = ""  # of the reply, as far as it is final
    token_ids: tuple[int, ...] = ()


def _beginning(content: object) -> str:
    return summary(content) if isinstance(content, str) else shown(content)


def messages_of(message: str | Message | Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages of a new turn; raises InvalidRequest for anything else."""
    match message:
        case str():
            if not message.strip():
                raise InvalidRequest("message: it is empty; give some text")
            return ({"role": "user", "content": message},)
        case Mapping():
            return (message,)
        case list() | tuple():
            return (*message,)
        case _:
            raise InvalidRequest(f"message: {type(message).__name__} is neither text nor messages; give one of them")


def grouped(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]:
    """Return the instructions that a chat begins with, and the rest: a group for each message of the user."""
    groups: list[list[Message]] = [[]]
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "user" or (len(groups) == 1 and role not in ("system", "developer")):
            groups.append([])
        groups[-1].append(message)
    head, *rest = map(tuple, groups)
    return head, tuple(rest)


def said_in(head: Sequence[Message], earlier: Sequence[Sequence[Message]], turns: Sequence[Written]) -> list[Message]:
    """Return all messages of a chat: its instructions, those before the first turn, and those of its turns."""
    said = [*head, *(message for group in earlier for message in group)]
    for turn, _ in turns:
        said += [*turn.messages, {"role": "assistant", "content": turn.text}]
    return said
