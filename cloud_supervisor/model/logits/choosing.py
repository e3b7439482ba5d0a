"""The choices of a forward, one from each row of its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from chaperone_common.logprobs import measure
from chaperone_common.sampling import Softmax, choose, softmax
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.model.logits.rows import LogitRows


class Chooser(Protocol):
    """The rule by which a model chooses a token."""

    def __call__(self, soft: Softmax, sampling: SamplingParams, position: int, drafted: int | None) -> Choice:
        """Return the choice for a position; `drafted` is the chain's own token there, None after its end."""


def coupled_choice(soft: Softmax, sampling: SamplingParams, position: int, drafted: int | None) -> Choice:
    """Choose as the protocol demands, whatever was drafted."""
    return choose(soft, sampling, position)


class Row(NamedTuple):
    """One row of logits."""

    sampling: SamplingParams
    position: int  # of the token that was read
    drafted: int | None  # the chain's own next token; None after its end
    top_logprobs: int | None  # report log-probabilities, with this number of the likeliest tokens; None: none


def choices(logits: torch.Tensor, rows: Sequence[Row], chooser: Chooser) -> Iterator[Choice]:
    """Choose from each row, with the noise of the position that the chosen token will have."""
    if chooser is coupled_choice:
        found = LogitRows(logits, [row.sampling.temperature for row in rows])
        for scores, row in zip(found, rows, strict=True):
            choice = choose(scores, row.sampling, row.position + 1)
            if row.top_logprobs is not None:
                choice = replace(choice, logprobs=scores.logprobs(choice.token_id, row.top_logprobs))
            yield choice
        return
    for values, row in zip(on_host(logits), rows, strict=True):
        soft = softmax(values, row.sampling.temperature)
        choice = chooser(soft, row.sampling, row.position + 1, row.drafted)
        if row.top_logprobs is not None:
            choice = replace(choice, logprobs=measure(values, choice.token_id, row.top_logprobs))
        yield choice


def on_host(logits: torch.Tensor) -> NDArray[np.float32]:
    """Return logits as an array."""
    values: NDArray[np.float32] = logits.float().cpu().numpy()
    return values
