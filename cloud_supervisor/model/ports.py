"""The large model, as the supervisor sees it: caches, forwards, and the queue in front of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from chaperone_common.beams.scoring import Scores, Scoring
from chaperone_common.conditioning import Encoding
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.kv.slots import SlotCache, SlotPool


class Urgency(IntEnum):
    """The purpose of a request; the scheduler serves lower values first."""

    VERIFY = 0  # a device waits for the verdict
    WRITE = 1  # the cloud writes on its own
    READ = 2  # a prompt


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """One session's part in a forward.

    The cache must hold `tree.start` entries, one path. A branch token sees what its parent sees, and itself. Its parent
    may be a token that the cache holds.
    """

    cache: SlotCache
    tree: TokenTree  # the tokens to feed: a chain after the entries held, and branch tokens
    # Choices wanted after the last tokens of the chain, and one more for each branch token; if `encoded`, rows of the
    # encoding in place of choices, and with `scoring` scores.
    num_choices: int
    sampling: SamplingParams
    top_logprobs: int | None = None  # report log-probabilities, with this number of the likeliest tokens; None: none
    first_reported: int = 0  # the index of the first choice along the chain that has them; those before have none
    encoded: bool = False  # the tokens that count for `num_choices` are encoded; nothing is chosen
    scoring: Scoring | None = None  # the last token, and each branch token, is scored; nothing is chosen


Found = list[Choice] | Encoding | Scores  # what a request gets from one forward


def only_choices(found: Sequence[Found]) -> list[list[Choice]]:
    """Return the choices of requests that want choices. Raises ValueError if one wants an encoding, or scores."""
    choices = [each for each in found if not isinstance(each, Encoding | Scores)]
    if len(choices) < len(found):
        raise ValueError("encoded, scoring: `forward` returns choices; use `step`")
    return choices


def check_rows(scoring: Scoring, num_choices: int, branches: int, *, encoded: bool) -> None:
    """Raise ValueError unless a request for scores has a row for its last token, and for each branch token."""
    rows = 1 + branches
    if encoded or num_choices != 1 or not len(scoring.listed) == len(scoring.nodes) == rows or scoring.others < 0:
        raise ValueError(
            f"scoring: {len(scoring.listed)} rows of {len(scoring.nodes)} nodes, for {num_choices} choices and "
            f"{branches} branches; give one for the last token, and one for each branch token, and ask for no encoding"
        )


def check_scoring(scoring: Scoring, num_choices: int, branches: int, vocabulary_size: int, *, encoded: bool) -> None:
    """Raise ValueError for a request for scores that cannot be answered."""
    check_rows(scoring, num_choices, branches, encoded=encoded)
    for token_id in (token_id for listed in scoring.listed for token_id in listed):
        if not 0 <= token_id < vocabulary_size:
            raise ValueError(f"scoring: {token_id} is not in a vocabulary of {vocabulary_size}")


class TargetModel(Protocol):
    """The large model; blocking, called from one thread."""

    @property
    def context_tokens(self) -> int:
        """The longest path, in tokens."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Cache memory of one token, for a budget before it is allocated."""

    @property
    def kv_pool(self) -> SlotPool:
        """The memory of all keys and values. Only caches of this pool are accepted."""

    @property
    def encodes(self) -> bool:
        """True if it has a projector, so that requests may ask for encodings."""

    def step(self, requests: Sequence[ForwardRequest]) -> list[Found]:
        """Feed the tokens of all requests, extend their caches, and return each request's choices, encoding or scores.

        The choices along the chain come first, oldest position first. Then comes one after each branch token. A choice
        is drawn with the noise of the position that the chosen token will have. An encoding has the rows of the last
        `num_choices` tokens; without any it is empty. Scores are in the order of choices, and with their noise in a
        domain of their own.
        A cache that holds branch tokens must be reduced to one path, by `select` or `crop`, before it is used again.
        All requests are checked before anything runs. Raises ValueError for an impossible request, for two requests
        with one cache, and for an encoding if the model has no projector; and PromptTooLong.
        """

    def forward(self, requests: Sequence[ForwardRequest]) -> list[list[Choice]]:
        """Do what `step` does for requests that all want choices."""


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """The cloud's choices, oldest position first and then one after each branch token, and their cost.

    A request that wants an encoding or scores has these, and no choices.
    """

    choices: list[Choice]
    queue_us: int
    compute_us: int
    cached_tokens: int = 0  # of the text, that were not computed
    encoding: Encoding | None = None
    scores: Scores | None = None


class ForwardQueue(Protocol):
    """The queue in front of the model, as the supervisor sees it."""

    async def forward(
        self,
        key: Hashable,
        tree: TokenTree,
        num_choices: int,
        sampling: SamplingParams,
        *,
        top_logprobs: int | None = None,
        first_reported: int = 0,
        deadline_ms: float | None = None,
        tenant: str = "",
        urgency: Urgency = Urgency.VERIFY,
        encoded: bool = False,
        scoring: Scoring | None = None,
    ) -> ForwardResult:
        """Read a session's whole text, and return the choices after its last `num_choices` tokens and its branches.

        `tree` holds the text from position 0 on. Only the tokens that the session's cache lacks are computed. With
        `num_choices` 0 the text is only read ahead, as a prompt is. With `top_logprobs` each choice has its
        log-probability, and those of this number of the likeliest tokens; along the chain only from the index
        `first_reported` on. With `encoded` the encoding of the last `num_choices` tokens takes the place of choices,
        and with `scoring` the scores of the last token and of each branch token.
        Raises Overloaded, CloudTimeout if `deadline_ms` passes before the forward starts, PromptTooLong, or
        CloudUnavailable. Cancelling gives up the answer, not necessarily the work.
        """

    def free(self, key: Hashable) -> None:
        """Forget a session; unknown sessions are no error."""

    def spare(self, key: Hashable) -> None:
        """Let a session's cache go first when memory is short: its device is away, and may come back."""
