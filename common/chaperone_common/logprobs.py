"""Log-probabilities of tokens: natural logarithms of `softmax(logits)`.

They are the model's own: at temperature 1, over the tokenizer's vocabulary, before top-k, top-p and min-p. OpenAI's API
reports the same numbers, and vLLM calls them raw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

LEAST_LOGPROB = -9999.0  # stands for anything smaller, also for minus infinity, as in OpenAI's API


class LogprobSource(StrEnum):
    """The model that a log-probability belongs to."""

    CLOUD = "cloud"  # the large model: it chose or confirmed the token before that was final
    DEVICE = "device"  # the small model: nobody had verified the token when it became final


@dataclass(frozen=True, slots=True)
class ChoiceLogprobs:
    """The log-probability of a chosen token, and the likeliest tokens at its position with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # likeliest first, ties to the lower id


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and its log-probability.

    In events `token_bytes` are the bytes that the token adds to the text, none for a control token. They may be a part
    of a character. `token` is their text, or the name of a control token.
    """

    token_id: int
    logprob: float  # in [-9999, 0]
    token: str = ""
    token_bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a final token, and the likeliest tokens at its position."""

    chosen: Logprob
    top_logprobs: tuple[Logprob, ...]  # likeliest first
    source: LogprobSource

    @classmethod
    def of(cls, token_id: int, found: ChoiceLogprobs, source: LogprobSource) -> TokenLogprobs:
        """Return the log-probabilities of the token that was chosen."""
        top = tuple(Logprob(other, logprob) for other, logprob in found.top)
        return cls(Logprob(token_id, found.logprob), top, source)


def measure(logits: NDArray[np.float32], token_id: int, count: int) -> ChoiceLogprobs:
    """Return the log-probability of a token under logits [vocab], and those of the `count` likeliest tokens."""
    most = float(logits.max())
    total = most + math.log(float(np.exp(logits - most).sum(dtype=np.float64)))
    if not count:
        return ChoiceLogprobs(limited(float(logits[token_id]) - total))
    count = min(count, len(logits))
    least = np.partition(logits, -count)[-count]
    return ranked(float(logits[token_id]), np.flatnonzero(logits >= least), logits[logits >= least], total, count)


def ranked(
    chosen: float, ids: NDArray[np.intp], logits: NDArray[np.float32], total: float, count: int
) -> ChoiceLogprobs:
    """Return the log-probabilities for a chosen logit and the `count` largest of some logits, whose ids are rising.

    `total` is the logarithm of the sum of all exponentials.
    """
    order = np.argsort(-logits, kind="stable")[:count]
    top = tuple((int(ids[index]), limited(float(logits[index]) - total)) for index in order)
    return ChoiceLogprobs(limited(chosen - total), top)


def limited(logprob: float) -> float:
    """Return a log-probability within [-9999, 0]: rounding may have left it above."""
    return min(max(logprob, LEAST_LOGPROB), 0.0)
