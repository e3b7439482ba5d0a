"""The cloud's end of one generation with beams: a forest in, requests for scores, a verdict out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chaperone_common.beams.chance import PhiloxChance
from chaperone_common.beams.forest import Forest, Numbering, numbered
from chaperone_common.beams.frames import BeamSettings, BeamStep, BeamVerdict, ForestFrame
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.beams.scoring import NodeScores, Scores, Scoring
from chaperone_common.beams.search import search_forest
from chaperone_common.beams.verification import Beam, verify_forest
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.ranges import MAX_BEAMS, RANGES
from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams


@dataclass(frozen=True, slots=True)
class TextScores:
    """A request for scores after one input beam and after the nodes that continue it."""

    tree: TokenTree  # the whole text of the beam, and the nodes as its branch tokens
    scoring: Scoring


@dataclass(frozen=True, slots=True)
class Round:
    """A forest that waits for its scores."""

    frame: ForestFrame
    numbering: Numbering
    texts: tuple[TextScores, ...]  # one for each distinct input beam


class CloudBeams:
    """The beams as the cloud knows them. `receive` takes a forest, and `answer` its scores."""

    def __init__(
        self,
        settings: BeamSettings,
        sampling: SamplingParams,
        prompt: Sequence[int],
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        vocabulary_size: int,
    ) -> None:
        """Begin, or go on with the running beams of the settings; raises InvalidRequest."""
        _check(settings, max_new_tokens, vocabulary_size)
        self._vocabulary_size = vocabulary_size
        self.progress = BeamProgress(settings, max_new_tokens, frozenset(eos_token_ids))
        self._sampling = sampling
        self._prompt = tuple(prompt)

    @property
    def others(self) -> int:
        """Tokens wanted after each node that its row does not list: drawn ones, or with temperature 0 the likeliest."""
        if self._sampling.temperature:
            return self.progress.settings.num_beams
        progress = self.progress
        if progress.settings.stops:
            return progress.most_running
        return progress.settings.num_beams + len(progress.eos_token_ids)

    def receive(self, frame: ForestFrame) -> Round:
        """Take a forest, and return the scores that it needs. Raises ProtocolViolation for an impossible one."""
        progress = self.progress
        if frame.round != progress.round:
            raise ProtocolViolation(f"round: {frame.round}; the next one is {progress.round}")
        try:
            progress.stop(frozenset(frame.dropped))
            progress.hypotheses.forget(frozenset(frame.copies))
            if frame.forest.stopped and not progress.settings.stops:
                raise ValueError("stopped: no stop strings were announced")
            if progress.done:
                raise ProtocolViolation(f"round: {frame.round}, but no beam can improve the text; send a Close")
            if frame.forest.depth >= progress.layers_left:
                raise ValueError(f"layers: {frame.forest.depth}, and {progress.layers_left} tokens are left")
            for row in frame.forest.rows:
                if max(row.token_ids) >= self._vocabulary_size:
                    raise ValueError(f"row: {max(row.token_ids)} is not in a vocabulary of {self._vocabulary_size}")
            numbering = numbered(frame.forest, progress.numbering().inputs, progress.eos_token_ids)
        except ValueError as error:
            raise ProtocolViolation(f"forest: {error}") from None
        return self._round(frame, numbering)

    def alone(self) -> Round:
        """Return a round without a forest, in which the cloud draws one layer."""
        self.progress.stop(())
        frame = ForestFrame(self.progress.round, Forest())
        return self._round(frame, self.progress.numbering())

    def answer(self, asked: Round, scores: Sequence[Scores], queue_us: int = 0, compute_us: int = 0) -> BeamVerdict:
        """Verify a forest by the scores of each text of the round, and return the verdict."""
        progress, numbering = self.progress, asked.numbering
        by_node = [NodeScores((), (), 0.0)] * len(numbering.nodes)  # a text that has ended needs none
        for text, found in zip(asked.texts, scores, strict=True):
            for node, node_scores in zip(text.scoring.nodes, found.nodes, strict=True):
                by_node[node] = node_scores
        beams = [
            Beam(node, None, beam.log_p, beam.logprob)
            for node, beam in zip(numbering.inputs, progress.running, strict=True)
        ]
        settings = progress.settings

        def final(running: Sequence[Beam], finished: Sequence[Beam]) -> bool:
            return progress.ends_with(numbering, map(_step, running), map(_step, finished))

        if self._sampling.temperature:
            position = len(self._prompt) + progress.length
            seed = self._sampling.seed
            outcome = verify_forest(
                numbering, beams, by_node, settings.width, lambda depth: PhiloxChance(seed, position + depth), final
            )
        else:
            kept = progress.most_running if settings.stops else None
            outcome = search_forest(numbering, beams, by_node, settings.num_beams, final, kept=kept)
        running = tuple(map(_step, outcome.running))
        finished = tuple(map(_step, outcome.finished))
        verdict = BeamVerdict(
            progress.round,
            running,
            finished,
            outcome.accepted,
            outcome.tested,
            queue_us,
            compute_us,
            outcome.live,
            outcome.needed,
        )
        progress.apply(numbering, running, finished)
        return verdict

    def _round(self, frame: ForestFrame, numbering: Numbering) -> Round:
        texts = self.progress.texts
        found = [_TextTree((*self._prompt, *text), node) for node, text in enumerate(texts)]
        for node in range(len(texts), len(numbering.nodes)):
            if not numbering.ends(node):
                found[numbering.path(node)[0]].add(numbering, node)
        return Round(frame, numbering, tuple(text.scores(numbering, self.others) for text in found))


class _TextTree:
    """The text of an input beam, and the nodes that continue it."""

    def __init__(self, text: tuple[int, ...], node: int) -> None:
        self._text = text
        self._index = {node: len(text) - 1}  # of each node's last token in the tree
        self._branches: list[BranchToken] = []

    def add(self, numbering: Numbering, node: int) -> None:
        """Add a node, whose parent was added before."""
        found = numbering.nodes[node]
        assert found is not None, "an input beam is no branch"
        self._index[node] = len(self._text) + len(self._branches)
        self._branches.append(BranchToken(self._index[found.parent], found.token_id))

    def scores(self, numbering: Numbering, others: int) -> TextScores:
        """Return the request."""
        listed = tuple(numbering.rows[node].token_ids if node in numbering.rows else () for node in self._index)
        return TextScores(TokenTree(self._text, tuple(self._branches)), Scoring(listed, tuple(self._index), others))


def _step(beam: Beam) -> BeamStep:
    """Return a beam as it is sent: both ends go on with the same numbers."""
    return BeamStep(beam.node, beam.token_id, float(np.float32(beam.log_p)), float(np.float32(beam.logprob)))


def _check(settings: BeamSettings, max_new_tokens: int, vocabulary_size: int) -> None:
    if not 1 <= settings.num_beams <= MAX_BEAMS:
        raise InvalidRequest(f"num_beams: {settings.num_beams} is outside [1, {MAX_BEAMS}]; give a number of beams")
    if not 1 <= settings.least_width <= settings.num_beams:
        raise InvalidRequest(
            f"least_width: {settings.least_width} is outside [1, {settings.num_beams}], up to num_beams; lower it"
        )
    if settings.width_threshold is not None and not 0 < settings.width_threshold <= 1:
        raise InvalidRequest(f"width_threshold: {settings.width_threshold:g} is outside (0, 1]; give a probability")
    if problem := RANGES["length_penalty"].problem(settings.length_penalty):
        raise InvalidRequest(f"length_penalty: {problem}")
    lengths = {len(beam.token_ids) for beam in settings.running}
    if len(settings.running) > settings.num_beams or len(lengths) > 1 or max(lengths, default=0) >= max_new_tokens:
        raise InvalidRequest(
            f"running: {len(settings.running)} beams of {sorted(lengths)} tokens; give up to num_beams, "
            f"{settings.num_beams}, of one length below max_new_tokens, {max_new_tokens}"
        )
    for text in (*(beam.token_ids for beam in settings.running), *(beam.token_ids for beam in settings.finished)):
        if text and max(text) >= vocabulary_size:
            raise InvalidRequest(f"running: {max(text)} is not in a vocabulary of {vocabulary_size}")
    logprobs = [
        *(number for beam in settings.running for number in (beam.log_p, beam.logprob)),
        *(beam.logprob for beam in settings.finished),
    ]
    for number in logprobs:
        if not -np.inf < number <= 0:
            raise InvalidRequest(f"running: the log-probability {number:g} is not finite, or above 0")
