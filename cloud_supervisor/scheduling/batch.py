"""The scheduler's values: requests that wait, the forward that runs next, and answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from chaperone_common.beams.scoring import Scoring
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import ForwardResult, Urgency


class KvView(Protocol):
    """The part of the KV store that the scheduler looks at."""

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the budget holds."""

    def held(self, key: Hashable, token_ids: Sequence[int], tenant: str = "") -> int | None:
        """Return how many of these leading tokens are cached for the session, on one path.

        That is in a cache of its own, or in one of its tenant that begins with the same tokens. None: in neither.
        """


@dataclass(frozen=True, slots=True, eq=False)
class QueuedRequest:
    """One session's request. It is compared by identity, since two requests may want the same."""

    key: Hashable  # the session
    tree: TokenTree  # the whole text, and branch tokens
    # Choices wanted after the last tokens of the chain, or rows of their encoding; 0: the text is only read ahead.
    num_choices: int
    sampling: SamplingParams
    deadline_at: float | None = None  # seconds on the scheduler's clock; the first forward must begin before it
    tenant: str = ""
    urgency: Urgency = Urgency.VERIFY
    top_logprobs: int | None = None  # as in `ForwardRequest`
    first_reported: int = 0  # as in `ForwardRequest`, among all `num_choices`
    encoded: bool = False  # as in `ForwardRequest`
    scoring: Scoring | None = None  # as in `ForwardRequest`


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a request that one forward computes."""

    request: QueuedRequest
    start: int  # the cache holds the chain's tokens below this position
    end: int  # those from `start` up to here are fed
    choices_left: int  # choices, or rows, that the request still lacks, those of this chunk included

    @property
    def is_last(self) -> bool:
        """The chunk has the end of the chain, and the branches."""
        return self.end == self.request.tree.end

    @property
    def tokens(self) -> int:
        """Tokens that are fed."""
        return self.end - self.start + (len(self.request.tree.branches) if self.is_last else 0)

    @property
    def num_choices(self) -> int:
        """Choices, or rows, that this chunk computes along the chain."""
        return max(0, self.choices_left - (self.request.tree.end - self.end))

    @property
    def first_reported(self) -> int:
        """The index, among this chunk's choices along the chain, of the first one with log-probabilities."""
        found_before = self.request.num_choices - self.choices_left
        return min(self.num_choices, max(0, self.request.first_reported - found_before))


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunks of one forward, each of another session."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a request: its result, or the error that its caller gets."""

    request: QueuedRequest
    outcome: ForwardResult | BaseException
