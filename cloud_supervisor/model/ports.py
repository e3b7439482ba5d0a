"""What the supervisor needs from a large model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from chaperone_common.types import BranchToken, Choice, SamplingParams


class KvCache(Protocol):
    """Keys and values of one sequence, on whatever device the model uses.

    It holds one entry for each token that was read, in the order of the readings: of each the chain, and then the
    branch tokens. While the entries are one path, an entry's index is its token's position; behind a tree it is not.
    """

    @property
    def length(self) -> int:
        """Entries held, those of branch tokens among them; so it may be more than any path has tokens."""

    @property
    def size_bytes(self) -> int:
        """Memory held."""

    def crop(self, length: int) -> None:
        """Keep the first `length` entries, which must be one path; forget the others.

        Raises ValueError unless so many are held.
        """

    def select(self, length: int, indices: Sequence[int]) -> None:
        """Keep the first `length` entries and then those at these indices; forget the others, and close the gaps.

        What is kept must be one path: the next reading goes on behind it. Raises ValueError for indices that are below
        `length`, not held or not in ascending order.
        """


@dataclass(frozen=True, slots=True)
class Reading:
    """One session's part in a forward: a chain of tokens, and branch tokens beside it.

    `token_ids` follow the `cache.length` tokens that are already read, which are a chain themselves. Choices are wanted
    for the last `choices` positions: the token after `token_ids[-choices]`, ..., the token after `token_ids[-1]`; and
    for each branch token.

    A branch token sees what its parent sees, and itself. Parents count from `token_ids[-choices]`, which is 0, on to
    the chain's last token, `choices - 1`, and then through the branch tokens; -1 is the token before, and so on, for a
    list that is read in pieces may have its branches' parents in an earlier one.
    """

    cache: KvCache
    token_ids: Sequence[int]
    choices: int
    sampling: SamplingParams
    branches: Sequence[BranchToken] = ()


class TargetModel(Protocol):
    """The large model; blocking, called from one worker thread."""

    @property
    def context_tokens(self) -> int:
        """Tokens that fit at most on one path."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Cache memory of one token, for budgeting before it is allocated."""

    def new_cache(self) -> KvCache:
        """An empty cache."""

    def read(self, readings: Sequence[Reading]) -> list[list[Choice]]:
        """Extend the caches, each another one, by chain and branch tokens, and return each reading's choices.

        Those along the chain come first, oldest position first, then one for each branch token. The noise is that of
        the position after the token. A cache that holds branch tokens must be told by `select` or `crop` which path
        stands before it is used again. All readings are checked before anything runs: raises ValueError for one that
        makes no sense, or for two of one cache, and PromptTooLong.
        """


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The cloud's choices, oldest position first and then for each branch token, and what they cost."""

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
        branches: Sequence[BranchToken] = (),
        deadline_ms: float | None = None,
    ) -> ReadResult:
        """Read a session's whole token list and return the choices after its last `choices` tokens and its branches.

        The parents of `branches` count from `token_ids[-choices]`, which is 0; see `Judging`.

        Raises Overloaded, CloudTimeout if `deadline_ms` passes before the reading starts, PromptTooLong, or
        CloudUnavailable. Cancelling gives up the answer, not necessarily the work.
        """

    def free(self, key: Hashable) -> None:
        """Forget a session; unknown ones are no error."""
