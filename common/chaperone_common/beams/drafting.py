"""The small model's forest, layer by layer: laws in, rows and draws out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from chaperone_common.beams.chance import FOREST_DOMAIN, PhiloxChance
from chaperone_common.beams.draft_row import DraftRow
from chaperone_common.beams.forest import Draw, Forest
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.beams.rule import Float64s, beam_law


class ForestDraft:
    """A forest that grows from the running beams.

    Draws are independent, from exactly the law that the rows send. At temperature 0 the likeliest beams are taken.
    """

    def __init__(
        self,
        progress: BeamProgress,
        prompt_length: int,
        *,
        width: int,
        row_tokens: int,
        temperature: float,
        seed: int = 0,
        stops: Callable[[tuple[int, ...]], bool] | None = None,
    ) -> None:
        """Draw W_S = `width` beams in each layer, from the `row_tokens` likeliest tokens after each text.

        `stops` returns whether the last of some new tokens completes a stop string, which ends the text.
        """
        self.numbering = progress.numbering()
        self._width = width
        self._row_tokens = row_tokens
        self._searches = temperature == 0
        self._seed = seed
        self._stops = stops
        self._texts = progress.texts
        self._position = prompt_length + progress.length
        weights = {
            node: beam.logprob if self._searches else beam.log_p
            for node, beam in zip(self.numbering.inputs, progress.running, strict=True)
        }
        self._weights = [weights[node] for node in range(len(weights))]
        self._rows: list[DraftRow] = []
        self._layers: list[tuple[Draw, ...]] = []

    @property
    def growing(self) -> list[int]:
        """The nodes whose laws the next layer needs; empty if all texts have ended."""
        return self.numbering.growing()

    def grow(self, laws: Sequence[Float64s]) -> None:
        """Add a layer; `laws` [vocabulary] are the small model's after each growing node, as `sampling.warp` returns.

        At temperature 0 they are its laws at temperature 1.
        """
        growing = self.growing
        rows = [DraftRow.of(law, self._row_tokens) for law in laws]
        by_node = dict(zip(growing, rows, strict=True))
        before = self.numbering.slots[-1]
        slots = [slot for slot, node in enumerate(before) if node in by_node]
        if self._searches:  # two slots of one text are the same beam
            slots = [slot for slot in slots if before.index(before[slot]) == slot]
        nodes = [before[slot] for slot in slots]
        law = beam_law(np.array([self._weight(node) for node in nodes]), [by_node[node].law() for node in nodes])
        first = np.cumsum([0, *(len(by_node[node]) for node in nodes)])
        draws = []
        for outcome in self._outcomes(law):
            number = int(np.searchsorted(first, outcome, side="right")) - 1
            draws.append(Draw(slots[number], int(outcome - first[number])))
        self.numbering.continue_with(rows, draws)
        if self._stops is not None:
            for node in set(self.numbering.slots[-1]):
                start, tokens = self.numbering.path(node)
                if not self.numbering.ends(node) and self._stops((*self._texts[start], *tokens)):
                    self.numbering.stopped.add(node)
        self._rows += rows
        self._layers.append(tuple(draws))

    def forest(self) -> Forest:
        """Return the forest as it is sent."""
        return Forest(tuple(self._rows), tuple(self._layers), tuple(sorted(self.numbering.stopped)))

    def _weight(self, node: int) -> float:
        """Return the log-probability of a node: the large model's of its input beam, then the small model's."""
        return self._weights[self.numbering.path(node)[0]] + self.numbering.log_q[node]

    def _outcomes(self, law: Float64s) -> list[int]:
        if self._searches:
            likely: list[int] = np.argsort(-law, kind="stable")[: self._width].tolist()
            return likely
        chance = PhiloxChance(self._seed, self._position + len(self._layers), domain=FOREST_DOMAIN)
        return [chance.outcome(law) for _ in range(self._width)]
