"""The choice of the tokens of an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Sampling:
    """Greedy choice, or a draw from the likeliest tokens."""

    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0
    seed: int = 0

    def with_seed(self, seed: int) -> Sampling:
        """Return the same choice with another seed."""
        return replace(self, seed=seed)


GREEDY, DRAWN = Sampling(), Sampling(temperature=0.8, top_p=0.95)
