"""The beams of one generation, as both ends know them: each verdict moves them by the same rule. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from chaperone_common.beams.forest import Numbering
from chaperone_common.beams.frames import BeamSettings, BeamStep, RunningBeam
from chaperone_common.beams.hypotheses import Hypotheses, Hypothesis

MAX_KEPT = 4  # continuations for each beam, of which stop strings may end some


@dataclass(slots=True)
class BeamProgress:
    """The running beams, all of one length, and the finished ones."""

    settings: BeamSettings
    max_new_tokens: int
    eos_token_ids: Collection[int]
    running: list[RunningBeam] = field(init=False)
    hypotheses: Hypotheses = field(init=False)
    round: int = 0  # the next one
    candidates: int = field(init=False)  # leading running beams that count as whole texts if a stop string ends them

    def __post_init__(self) -> None:
        settings, num_beams = self.settings, self.settings.num_beams
        self.running = [*settings.running] or [RunningBeam((), 0.0, 0.0)]
        self.candidates = num_beams
        spare = num_beams if settings.stops else 0  # a round may finish several texts that read alike
        self.hypotheses = Hypotheses(num_beams, settings.length_penalty, settings.early_stopping, spare)
        for hypothesis in self.settings.finished:
            self.hypotheses.add(hypothesis)

    @property
    def most_running(self) -> int:
        """The largest number of running beams after a round, before `stop`.

        If stop strings can end texts, these are the continuations that Hugging Face's beam search keeps.
        """
        num_beams = self.settings.num_beams
        return num_beams * min(MAX_KEPT, max(2, 1 + len(self.eos_token_ids))) if self.settings.stops else num_beams

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

    def stop(self, dropped: Collection[int]) -> None:
        """End running beams, by number, whose last token completes a stop string; the best of the others run on.

        If stop strings can end texts, this and `hypotheses.forget` come after each round. Raises ValueError for numbers
        of none.
        """
        if dropped and not self.settings.stops:
            raise ValueError("dropped: no stop strings were announced")
        if unknown := [number for number in dropped if not 0 <= number < len(self.running)]:
            raise ValueError(f"dropped: {unknown[0]} is none of the {len(self.running)} running beams")
        for number in sorted(dropped):
            if number < self.candidates:
                beam = self.running[number]
                self.hypotheses.add(Hypothesis(beam.token_ids, beam.logprob, "stop"))
        self.running = [beam for number, beam in enumerate(self.running) if number not in dropped]
        self._narrow()

    def apply(self, numbering: Numbering, running: Iterable[BeamStep], finished: Iterable[BeamStep]) -> None:
        """Take the beams after a round. Beams that have reached the limit are finished, the best first."""
        texts, finished = self.texts, tuple(finished)
        for step in finished:
            self.hypotheses.add(_finished(texts, numbering, step))
        self.running = [_text(texts, numbering, step) for step in running]
        ended_last = sum(len(_text(texts, numbering, step).token_ids) == self.length for step in finished)
        self.candidates = self.settings.num_beams - ended_last
        if self.running and not self.layers_left:
            for beam in sorted(self.running, key=lambda beam: -beam.logprob):
                self.hypotheses.add(Hypothesis(beam.token_ids, beam.logprob, "length"))
            self.running = []
        if not self.settings.stops:
            self._narrow()
        self.round += 1

    def _narrow(self) -> None:
        """Keep the running beams that go on."""
        del self.running[self.settings.num_beams :]
        if self.settings.one_cache and self.running:
            # All have one length, so the lowest perplexity is the highest log-probability.
            self.running = [max(self.running, key=lambda beam: beam.logprob)]


def _finished(texts: Sequence[tuple[int, ...]], numbering: Numbering, step: BeamStep) -> Hypothesis:
    beam = _text(texts, numbering, step)
    return Hypothesis(beam.token_ids, beam.logprob, "stop")


def _text(texts: Sequence[tuple[int, ...]], numbering: Numbering, step: BeamStep) -> RunningBeam:
    start, drafted = numbering.path(step.node)
    own = () if step.token_id is None else (step.token_id,)
    return RunningBeam((*texts[start], *drafted, *own), step.log_p, step.logprob)
