"""The beams of one generation, as both ends know them: each verdict moves them by the same rule. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from chaperone_common.beams.forest import Numbering
from chaperone_common.beams.frames import BeamSettings, BeamStep, RunningBeam
from chaperone_common.beams.hypotheses import Hypotheses, Hypothesis


@dataclass(slots=True)
class BeamProgress:
    """The running beams, all of one length, and the finished ones."""

    settings: BeamSettings
    max_new_tokens: int
    eos_token_ids: Collection[int]
    running: list[RunningBeam] = field(init=False)
    hypotheses: Hypotheses = field(init=False)
    round: int = 0  # the next one

    def __post_init__(self) -> None:
        self.running = [*self.settings.running] or [RunningBeam((), 0.0, 0.0)]
        self.hypotheses = Hypotheses(
            self.settings.num_beams, self.settings.length_penalty, self.settings.early_stopping
        )
        for hypothesis in self.settings.finished:
            self.hypotheses.add(hypothesis)

    @property
    def length(self) -> int:
        """New tokens of each running beam."""
        return len(self.running[0].token_ids) if self.running else 0

    @property
    def layers_left(self) -> int:
        """Layers until the limit."""
        return self.max_new_tokens - self.length if self.running else 0

    @property
    def done(self) -> bool:
        """True if no beam runs, or none can become one of the best."""
        best = max((beam.logprob for beam in self.running), default=None)
        return self.hypotheses.are_final(best, self.length)

    def ends_with(self, numbering: Numbering, running: Iterable[BeamStep], finished: Iterable[BeamStep]) -> bool:
        """Return whether the generation ends if a round ends with these beams. Changes nothing."""
        best = max(running, key=lambda step: step.logprob, default=None)
        if best is None:
            return True
        texts, hypotheses = self.texts, self.hypotheses.copy()
        for step in finished:
            hypotheses.add(_finished(texts, numbering, step))
        return hypotheses.are_final(best.logprob, len(_text(texts, numbering, best).token_ids))

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """The distinct running texts, in order: input beam n of a forest is node n."""
        return list(dict.fromkeys(beam.token_ids for beam in self.running))

    def numbering(self) -> Numbering:
        """Return the numbers of a forest without layers, on the running beams."""
        texts = self.texts
        return Numbering(tuple(texts.index(beam.token_ids) for beam in self.running), self.eos_token_ids)

    def finish(self, numbers: Collection[int], finish_reason: str) -> None:
        """End some running beams, by number, as finished texts. Raises ValueError for numbers of none."""
        if unknown := [number for number in numbers if not 0 <= number < len(self.running)]:
            raise ValueError(f"dropped: {unknown[0]} is none of the {len(self.running)} running beams")
        for number in sorted(numbers):
            beam = self.running[number]
            self.hypotheses.add(Hypothesis(beam.token_ids, beam.logprob, finish_reason))
        self.running = [beam for number, beam in enumerate(self.running) if number not in numbers]

    def apply(self, numbering: Numbering, running: Iterable[BeamStep], finished: Iterable[BeamStep]) -> None:
        """Take the beams after a round. Beams that have reached the limit are finished, the best first."""
        texts = self.texts
        for step in finished:
            self.hypotheses.add(_finished(texts, numbering, step))
        self.running = [_text(texts, numbering, step) for step in running]
        if self.running and not self.layers_left:
            for beam in sorted(self.running, key=lambda beam: -beam.logprob):
                self.hypotheses.add(Hypothesis(beam.token_ids, beam.logprob, "length"))
            self.running = []
        if self.settings.one_cache and self.running:
            # All have one length, so the lowest perplexity is the highest log-probability.
            self.running = [max(self.running, key=lambda beam: beam.logprob)]
        self.round += 1


def _finished(texts: Sequence[tuple[int, ...]], numbering: Numbering, step: BeamStep) -> Hypothesis:
    beam = _text(texts, numbering, step)
    return Hypothesis(beam.token_ids, beam.logprob, "stop")


def _text(texts: Sequence[tuple[int, ...]], numbering: Numbering, step: BeamStep) -> RunningBeam:
    start, drafted = numbering.path(step.node)
    own = () if step.token_id is None else (step.token_id,)
    return RunningBeam((*texts[start], *drafted, *own), step.log_p, step.logprob)
