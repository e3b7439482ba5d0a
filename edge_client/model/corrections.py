"""Corrections of the small model by the cloud, remembered for later texts of the same client.

Where the cloud chose another token, the memory keeps the last tokens of the text, the small model's token and the
cloud's. If the small model makes the same choice after the same tokens again, the cloud's earlier token is proposed.

A single correction after few tokens is rarely right again, so a short context needs more of them. `python -m benchmarks
adaptation` compares other lengths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from chaperone_common.types import Proposal


class Context(NamedTuple):
    """A length of contexts, and the corrections that it needs before it proposes."""

    tokens: int
    corrections: int


CONTEXTS = (Context(24, 1), Context(3, 2))  # longest first
CAPACITY = 20_000  # entries, up to 20 MB

_Key = tuple[int, ...]  # the small model's token, then the tokens before it


@dataclass(frozen=True, slots=True)
class Remembered(Proposal):
    """A proposal from memory. Its runner-up is the small model's own choice, its risk that of the entry."""


@dataclass(slots=True)
class _Entry:
    """The cloud's token in place of the small model's, with the outcomes since it was entered."""

    token_id: int
    right: int = 1
    wrong: int = 0

    @property
    def reliable(self) -> bool:
        """True if the cloud chose the token more often than not."""
        return self.right > self.wrong

    @property
    def risk(self) -> float:
        """The chance that the cloud chooses another token this time, by Laplace's rule."""
        return (self.wrong + 1) / (self.right + self.wrong + 2)


class CorrectionMemory:
    """The corrections that one client has received. It holds token ids only, and is never written to disk.

    It is bounded: the entry that was used least recently makes room for a new one.
    """

    def __init__(self, contexts: Sequence[Context] = CONTEXTS, *, capacity: int = CAPACITY) -> None:
        """Start empty; `contexts` are in order, longest first."""
        self._contexts = tuple(contexts)
        self._capacity = capacity
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def adapted(self, text: Sequence[int], proposal: Proposal) -> Proposal:
        """Return the proposal for the end of a text, with the remembered token in its place if there is one.

        The longest context with an entry decides. Its entry must have been right often enough, and more often than
        wrong. A proposal with log-probabilities is returned as it is, since these are of the small model's token.
        """
        if proposal.logprobs is not None:
            return proposal
        for context, key in self._keys(text, len(text), proposal.token_id):
            entry = self._entries.get(key)
            if entry is not None:
                proposes = entry.reliable and entry.right >= context.corrections
                return _remembered(entry, proposal) if proposes else proposal
        return proposal

    def judged(self, text: Sequence[int], position: int, proposal: Proposal, token_id: int) -> None:
        """Learn from the cloud's token at a position of a text, and from the proposal that it confirms or replaces."""
        own = proposal.runner_up if isinstance(proposal, Remembered) else proposal.token_id
        for _, key in self._keys(text, position, own):
            entry = self._entries.get(key)
            if entry is None:
                if token_id != own:
                    self._enter(key, token_id)
                continue
            self._entries.move_to_end(key)
            if entry.token_id == token_id:
                entry.right += 1
                continue
            entry.wrong += 1
            if not entry.reliable and token_id != own:
                self._enter(key, token_id)  # the newest correction wins

    def _keys(self, text: Sequence[int], end: int, own: int) -> Iterator[tuple[Context, _Key]]:
        """Yield the contexts before `end` with their keys, longest first; a short text has fewer."""
        for context in self._contexts:
            if context.tokens <= end:
                yield context, (own, *text[end - context.tokens : end])

    def _enter(self, key: _Key, token_id: int) -> None:
        self._entries[key] = _Entry(token_id)
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)


def _remembered(entry: _Entry, proposal: Proposal) -> Remembered:
    signal = replace(proposal.signal, risk=entry.risk)
    return Remembered(entry.token_id, signal, runner_up=proposal.token_id)
