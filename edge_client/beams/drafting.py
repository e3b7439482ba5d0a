"""A forest by the device's small model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.sampling import warp
from chaperone_common.types import SamplingParams
from edge_client.beams.shape import Shape
from edge_client.ports import BeamModel

ROW_TOKENS = 32  # of a law that is sent: below 3 kB a round of four layers with four draws


class ForestDrafter:
    """Drafts forests on the running beams of one generation."""

    def __init__(
        self,
        model: BeamModel,
        prompt: Sequence[int],
        sampling: SamplingParams,
        row_tokens: int = ROW_TOKENS,
        *,
        clock: Clock | None = None,
        on_forward: Callable[[int, float], None] = lambda rows, elapsed_ms: None,
    ) -> None:
        """`on_forward` takes the time of each forward that reads one token in each of some rows."""
        self._model = model
        self._clock = clock or MonotonicClock()
        self._on_forward = on_forward
        self._prompt = tuple(prompt)
        self._sampling = sampling
        self._row_tokens = row_tokens
        # Beam search ranks by the model's own law.
        self._law = sampling if sampling.temperature else SamplingParams(temperature=1.0)

    async def draft(
        self, progress: BeamProgress, shape: Shape, stops: Callable[[tuple[int, ...]], bool] | None = None
    ) -> ForestDraft:
        """Return a forest of this shape; it is less deep if all its texts end before.

        `stops` returns whether the last of some new tokens completes a stop string; None if there are none.
        """
        draft = ForestDraft(
            progress,
            len(self._prompt),
            width=shape.width,
            row_tokens=self._row_tokens,
            temperature=self._sampling.temperature,
            seed=self._sampling.seed,
            stops=stops,
        )
        beams = progress.texts
        for layer in range(shape.depth):
            paths = [draft.numbering.path(node) for node in draft.growing]
            if not paths:
                break
            began = self._clock.now()
            logits = await self._model.logits([(*self._prompt, *beams[start], *tokens) for start, tokens in paths])
            if layer:  # the first one also reads what the cloud has added
                self._on_forward(len(paths), (self._clock.now() - began) * 1e3)
            draft.grow([warp(row, self._law) for row in logits])
        return draft

    def close(self) -> None:
        """Free the model's caches."""
        self._model.close()
