"""The device's end of one generation with beams: forests out, verdicts in. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from chaperone_common.beams.forest import Forest, Numbering
from chaperone_common.beams.frames import BeamSettings, BeamStep, BeamVerdict, ForestFrame
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.errors import ProtocolViolation


class Gain(NamedTuple):
    """The layers of a round, and how many draws were enough for those that were drafted, as in `BeamVerdict`."""

    layers: int
    live: tuple[int, ...] = ()
    needed: tuple[int, ...] = ()


class DeviceBeams:
    """The beams as the device knows them. `send` makes a frame, and `receive` takes its verdict."""

    def __init__(
        self, settings: BeamSettings, max_new_tokens: int, eos_token_ids: Sequence[int], vocabulary_size: int
    ) -> None:
        self.progress = BeamProgress(settings, max_new_tokens, frozenset(eos_token_ids))
        self._vocabulary_size = vocabulary_size
        self._dropped: frozenset[int] = frozenset()
        self._copies: frozenset[int] = frozenset()
        self._sent: Numbering | None = None  # of the forest that waits for its verdict
        self._alone = 0  # verdicts on their way for layers that the cloud draws alone

    @property
    def waits(self) -> bool:
        """True while a verdict is on its way."""
        return self._sent is not None

    @property
    def sent(self) -> Numbering | None:
        """The numbers of the forest that waits for its verdict."""
        return self._sent

    def restart(self) -> BeamSettings:
        """Go on with these beams on another stream; return the settings for its Open."""
        progress = self.progress
        self._sent, self._alone, progress.round = None, 0, 0
        self._dropped = self._copies = frozenset()
        running = tuple(progress.running) if progress.length else ()
        return replace(progress.settings, running=running, finished=tuple(progress.hypotheses.best))

    def stop(self, dropped: Collection[int], copies: Callable[[Sequence[Hypothesis]], Collection[int]]) -> None:
        """End running beams, by number, whose last token completes a stop string.

        Then forget finished texts: `copies` returns those, by rank, that read like better ones. The next frame reports
        both. If stop strings can end texts, call this after each verdict.
        """
        if self.waits:
            raise ValueError("stop: a verdict is on its way; it is about these beams")
        self.progress.stop(dropped)
        hypotheses = self.progress.hypotheses
        self._dropped, self._copies = frozenset(dropped), frozenset(copies(hypotheses.best))
        hypotheses.forget(self._copies)

    def send(self, numbering: Numbering, forest: Forest, *, layers: int = 1, deadline_ms: int = 0) -> ForestFrame:
        """Return the frame of a forest on the running beams; one without layers lets the cloud draw up to `layers`."""
        if self.waits:
            raise ValueError("send: a verdict is on its way; a forest continues the beams after it")
        self._sent = numbering
        self._alone = 0 if forest.depth else layers - 1
        dropped, copies = tuple(sorted(self._dropped)), tuple(sorted(self._copies))
        self._dropped = self._copies = frozenset()
        return ForestFrame(self.progress.round, forest, dropped, copies, layers, deadline_ms)

    def receive(self, verdict: BeamVerdict) -> Gain:
        """Take a verdict. Raises ProtocolViolation for one that no cloud can have reached."""
        numbering, progress = self._sent, self.progress
        if numbering is None or verdict.round != progress.round:
            raise ProtocolViolation(f"round: a verdict on {verdict.round}, and {progress.round} is the next")
        settings = progress.settings
        if len(verdict.running) > progress.most_running:
            raise ProtocolViolation(f"running: {len(verdict.running)} beams, and num_beams is {settings.num_beams}")
        if not verdict.running and not verdict.finished:
            raise ProtocolViolation("running: no beam at all; a round has at least one")
        added = {self._added(numbering, step) for step in verdict.running}
        if len(added) > 1:
            raise ProtocolViolation(f"running: beams of different lengths, {sorted(added)} tokens after the last round")
        finished = [self._added(numbering, step) for step in verdict.finished]
        gain = Gain(max((*added, *finished)), verdict.live, verdict.needed)
        self._check_gain(numbering, gain)
        progress.apply(numbering, verdict.running, verdict.finished)
        self._sent = None
        if self._alone and not progress.done:
            self._alone -= 1
            self._sent = progress.numbering()
        return gain

    def _check_gain(self, numbering: Numbering, gain: Gain) -> None:
        """Raise ProtocolViolation for layers that no forest has."""
        drawn = [len(slots) for slots in numbering.slots[1:]]
        fits = len(gain.needed) <= len(gain.live) <= min(gain.layers, len(drawn))
        fits = fits and all(0 <= live <= most for live, most in zip(gain.live, drawn, strict=False))
        if not fits or not all(1 <= needed <= live for needed, live in zip(gain.needed, gain.live, strict=False)):
            raise ProtocolViolation(
                f"needed: {list(gain.needed)} of {list(gain.live)} draws in {gain.layers} layers; "
                f"the forest has {drawn} draws"
            )

    def _added(self, numbering: Numbering, step: BeamStep) -> int:
        """Return how many tokens a beam has gained; raise ProtocolViolation for an impossible beam."""
        if not 0 <= step.node < len(numbering.nodes):
            raise ProtocolViolation(f"node: {step.node} is none of the {len(numbering.nodes)} texts of the forest")
        if step.token_id is not None and not 0 <= step.token_id < self._vocabulary_size:
            raise ProtocolViolation(f"token_id: {step.token_id} is not in a vocabulary of {self._vocabulary_size}")
        if step.token_id is not None and numbering.ends(step.node):
            raise ProtocolViolation(f"node: {step.node} has ended, and token {step.token_id} follows it")
        if not (np.isfinite([step.log_p, step.logprob]).all() and max(step.log_p, step.logprob) <= 0):
            raise ProtocolViolation(f"log_p: {step.log_p:g} and {step.logprob:g} are no log-probabilities")
        added = len(numbering.path(step.node)[1]) + (step.token_id is not None)
        if not 1 <= added <= self.progress.layers_left:
            raise ProtocolViolation(f"running: a beam of {added} new tokens; 1 to {self.progress.layers_left} are left")
        return added
