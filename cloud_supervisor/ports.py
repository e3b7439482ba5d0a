"""What the supervisor needs from a large model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.types import Choice, SamplingParams


class KvCache(Protocol):
    """Keys and values of one sequence, on whatever device the model uses."""

    @property
    def length(self) -> int:
        """Tokens held."""

    @property
    def size_bytes(self) -> int:
        """Memory held."""

    def crop(self, length: int) -> None:
        """Forget the tokens from position `length` on."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One session's part in a forward: a chain of tokens today, a tree tomorrow.

    `token_ids` follow the `cache.length` tokens that are already read. Choices are wanted for the last `choices`
    positions: the token after `token_ids[-choices]`, ..., the token after `token_ids[-1]`.
    """

    cache: KvCache
    token_ids: Sequence[int]
    choices: int
    sampling: SamplingParams


class TargetModel(Protocol):
    """The large model; blocking, called from one worker thread."""

    @property
    def context_tokens(self) -> int:
        """Tokens that fit at most."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Cache memory of one token, for budgeting before it is allocated."""

    def new_cache(self) -> KvCache:
        """An empty cache."""

    def read(self, readings: Sequence[Reading]) -> list[list[Choice]]:
        """Run the forwards, extend the caches, and return each reading's choices, oldest position first."""
