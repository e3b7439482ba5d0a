"""The scheduler's values: requests that wait, the forward that runs next, and answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import ForwardResult


class KvView(Protocol):
    """The part of the KV store that the scheduler looks at."""

    def held(self, key: Hashable, token_ids: Sequence[int]) -> int | None:
        """Return how many of these leading tokens the session's cache holds on one path; None without a cache."""


@dataclass(frozen=True, slots=True, eq=False)
class QueuedRequest:
    """One session's request. It is compared by identity, since two requests may want the same."""

    key: Hashable  # the session
    tree: TokenTree  # the whole text, and branch tokens
    num_choices: int  # choices wanted after the last tokens of the chain; 0: the text is only read ahead
    sampling: SamplingParams
    deadline_at: float | None = None  # seconds on the scheduler's clock; the first forward must begin before it


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a request that one forward computes."""

    request: QueuedRequest
    end: int  # the chain's tokens below this position are fed, as far as the cache lacks them
    choices_left: int  # choices that the request still lacks, those of this chunk included

    @property
    def num_choices(self) -> int:
        """Choices that this chunk computes along the chain."""
        return max(0, self.choices_left - (self.request.tree.end - self.end))


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunks of one forward, each of another session."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a request: its result, or the error that its caller gets."""

    request: QueuedRequest
    outcome: ForwardResult | BaseException
