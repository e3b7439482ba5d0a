"""The small model's law of the next token, as it is sent: truncated to its likeliest tokens, and quantised. Pure.

The small model draws from the very law that it sends. So the rule is exact with respect to that law, and no number of
the small model has to be the same on both ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chaperone_common.beams.rule import Float64s

STEP_NATS = 1 / 16
LARGEST_STEPS = 255
MAX_ROW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class DraftRow:
    """Tokens that may follow a beam, the likeliest first, with their log-probabilities in steps of 1/16 nat.

    Raises ValueError unless there are 1 to 64 tokens with a step each, and all ids differ.
    """

    token_ids: tuple[int, ...]
    steps: bytes  # of each token, below the likeliest one: the first is 0

    def __post_init__(self) -> None:
        count = len(self.token_ids)
        if len(self.steps) != count or not 1 <= count <= MAX_ROW_TOKENS:
            raise ValueError(
                f"row: {count} tokens with {len(self.steps)} probabilities; give 1 to {MAX_ROW_TOKENS} of each"
            )
        if len(set(self.token_ids)) < count:
            raise ValueError("row: a token is there twice; give each once")

    @classmethod
    def of(cls, probabilities: Float64s, most: int) -> DraftRow:
        """Keep the `most` likeliest tokens of a law [vocabulary]; equal ones by id, the lower first.

        Tokens that are 16 nats below the likeliest are left out.
        """
        most = min(most, len(probabilities))
        likely = np.argpartition(-probabilities, most - 1)[:most]
        ids = likely[np.lexsort((likely, -probabilities[likely]))]
        with np.errstate(divide="ignore"):
            nats = np.log(probabilities[ids[0]]) - np.log(probabilities[ids])
        steps = np.rint(np.minimum(nats / STEP_NATS, LARGEST_STEPS + 1.0))
        kept = steps <= LARGEST_STEPS
        return cls(tuple(ids[kept].tolist()), steps[kept].astype(np.uint8).tobytes())

    def __len__(self) -> int:
        return len(self.token_ids)

    def law(self) -> Float64s:
        """Return the probabilities [tokens] that the steps stand for."""
        weights = np.exp(np.frombuffer(self.steps, np.uint8) * -STEP_NATS)
        return np.asarray(weights / weights.sum(), np.float64)
