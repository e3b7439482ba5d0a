"""All ways in which random decisions can fall, each with its probability: laws are computed, not estimated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

from chaperone_common.beams.rule import Float64s


class ScriptedChance:
    """Decisions that follow a script, and then always take the first possible way; notes the ways not taken."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self._script = script
        self._made: tuple[int, ...] = ()
        self.probability = 1.0
        self.open: list[tuple[int, ...]] = []  # scripts of the ways not taken

    def stands(self, probability: float) -> bool:
        least = min(1.0, probability)
        return self._take([1 - least, least]) == 1

    def outcome(self, law: Float64s) -> int:
        return self._take(law.tolist())

    def _take(self, law: list[float]) -> int:
        possible = [way for way, probability in enumerate(law) if probability > 0]
        if len(self._made) < len(self._script):
            way = self._script[len(self._made)]
        else:
            way = possible[0]
            self.open += [(*self._made, other) for other in possible[1:]]
        self.probability *= law[way]
        self._made = (*self._made, way)
        return way


def law_of(run: Callable[[ScriptedChance], Hashable]) -> dict[Hashable, float]:
    """Return the law of what `run` returns, over all decisions that it makes."""
    law: dict[Hashable, float] = defaultdict(float)
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        chance = ScriptedChance(scripts.pop())
        law[run(chance)] += chance.probability
        scripts += chance.open
    return dict(law)


def total_variation(left: dict[Hashable, float], right: dict[Hashable, float]) -> float:
    """Return half the sum of differences of two laws."""
    return sum(abs(left.get(value, 0.0) - right.get(value, 0.0)) for value in {*left, *right}) / 2
