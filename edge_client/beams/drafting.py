"""A forest by the device's small model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.sampling import warp
from chaperone_common.token_tree import common_prefix
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
        """`on_forward` takes the texts and the time of a forward of one token each, with the choice of draws."""
        self._model = model
        self._clock = clock or MonotonicClock()
        self._on_forward = on_forward
        self._prompt = tuple(prompt)
        self._sampling = sampling
        self._row_tokens = row_tokens
        self._read: list[tuple[int, ...]] = []  # texts that the model has read last, after the prompt
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
        for _ in range(shape.depth):
            paths = [draft.numbering.path(node) for node in draft.growing]
            if not paths:
                break
            began = self._clock.now()
            texts = [(*beams[start], *tokens) for start, tokens in paths]
            one_forward = bool(self._read) and all(
                any(common_prefix(text[:-1], read) == len(text) - 1 for read in self._read) for text in texts
            )
            logits = await self._model.logits([(*self._prompt, *text) for text in texts])
            draft.grow([warp(row, self._law) for row in logits])
            if one_forward:
                self._on_forward(len(texts), (self._clock.now() - began) * 1e3)
            self._read = texts
        return draft

    def close(self) -> None:
        """Free the model's caches."""
        self._model.close()
