"""Both ends of a generation with beams, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chaperone_common.beams.cloud import CloudBeams, Round
from chaperone_common.beams.device import DeviceBeams, Gain
from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.frames import BeamSettings, BeamVerdict
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.types import SamplingParams
from tests.unit.beams.models import EOS, PROMPT, VOCABULARY, grow, scores_of

SEED = 11


class Reader(Protocol):
    """Reads texts, as the device does."""

    def stops(self, text: tuple[int, ...]) -> bool:
        """Return whether a text holds a stop string."""

    def copies(self, finished: Sequence[Hypothesis]) -> list[int]:
        """Return the ranks of texts that read like better ones."""


class Pair:
    """A device and a cloud."""

    def __init__(
        self,
        settings: BeamSettings,
        *,
        temperature: float = 1.0,
        tokens: int = 12,
        seed: int = SEED,
        prompt: tuple[int, ...] = PROMPT,
        reader: Reader | None = None,
    ) -> None:
        """`reader` reads texts for stop strings; the settings announce these."""
        self.sampling = SamplingParams(temperature=temperature, seed=seed)
        self.prompt = prompt
        self.device = DeviceBeams(settings, tokens, (EOS,), VOCABULARY)
        self.cloud = CloudBeams(settings, self.sampling, prompt, tokens, (EOS,), VOCABULARY)
        self.verdicts: list[BeamVerdict] = []
        self.gains: list[Gain] = []
        self.reader = reader

    def round(self, width: int = 4, depth: int = 3) -> None:
        """Let the device draft, and the cloud verify."""
        progress = self.device.progress
        draft = ForestDraft(
            progress,
            len(self.prompt),
            width=width,
            row_tokens=4,
            temperature=self.sampling.temperature,
            seed=self.sampling.seed,
            stops=self.reader.stops if self.reader is not None else None,
        )
        grow(draft, progress.texts, min(depth, progress.layers_left - 1), self.prompt)
        frame = self.device.send(draft.numbering, draft.forest())
        self.answer(self.cloud.receive(frame))

    def answer(self, asked: Round) -> None:
        """Let the cloud answer a round, and the device take the verdict."""
        scores = scores_of(self.cloud, asked, seed=self.sampling.seed, temperature=self.sampling.temperature)
        verdict = self.cloud.answer(asked, scores)
        self.verdicts.append(verdict)
        self.gains.append(self.device.receive(verdict))
        assert self.device.progress == self.cloud.progress
        if self.reader is not None:
            running = self.device.progress.running
            stopped = [number for number, beam in enumerate(running) if self.reader.stops(beam.token_ids)]
            self.device.stop(stopped, self.reader.copies)

    def run(self, width: int = 4, depth: int = 3) -> None:
        """Go on to the end."""
        while not self.device.progress.done:
            self.round(width, depth)
