"""What the supervisor needs from a large model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The cloud's choices, oldest position first, and what they cost."""

    choices: list[Choice]
    queue_us: int
    compute_us: int


class Reader(Protocol):
    """What reads for the supervisor, for many sessions at once: a queue in front of a model, or a stand-in."""

    async def read(
        self,
        key: Hashable,
        token_ids: Sequence[int],
        choices: int,
        sampling: SamplingParams,
        *,
        deadline_ms: float | None = None,
    ) -> ReadResult:
        """Read a session's whole token list and return the choices after its last `choices` tokens.

        Raises Overloaded, CloudTimeout if `deadline_ms` passes before the reading starts, PromptTooLong, or
        CloudUnavailable. Cancelling gives up the answer, not necessarily the work.
        """

    def free(self, key: Hashable) -> None:
        """Forget a session; unknown ones are no error."""
