"""The values that both ends of a generation with beams exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from chaperone_common.beams.forest import Forest
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.beams.width import FixedWidth, Width, WidthLaw


class RunningBeam(NamedTuple):
    """A text that goes on."""

    token_ids: tuple[int, ...]  # new tokens, after the prompt
    log_p: float  # joint log-probability, after temperature and truncation: its weight among the beams
    logprob: float  # sum of the large model's own log-probabilities


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """The part of an Open that asks for beams. With temperature 0 it is beam search, otherwise beam sampling."""

    num_beams: int  # W_L; with a dynamic width, the largest
    width_threshold: float | None = None  # t of a dynamic width; None: the width is fixed
    least_width: int = 1  # W_min of a dynamic width
    one_cache: bool = False  # each round begins from its best beam alone: one cache on each end
    length_penalty: float = 1.0
    early_stopping: bool = False
    running: tuple[RunningBeam, ...] = ()  # of a text that is resumed, in their order
    finished: tuple[Hypothesis, ...] = ()  # of a text that is resumed
    stops: bool = False  # stop strings can end texts: the device says which

    @property
    def width(self) -> Width:
        """The rule for W_L."""
        if self.width_threshold is None:
            return FixedWidth(self.num_beams)
        return WidthLaw(self.width_threshold, self.least_width, self.num_beams)


class BeamStep(NamedTuple):
    """A beam after a round, by the number of a node of the round's forest."""

    node: int
    token_id: int | None  # after the node's text; None: the text is the node's own
    log_p: float  # of the whole text; 32 bits on the wire
    logprob: float


@dataclass(frozen=True, slots=True)
class ForestFrame:
    """Device to cloud: a forest that continues the running beams, or none, to let the cloud continue them alone."""

    round: int  # counts from 0
    forest: Forest
    dropped: tuple[int, ...] = ()  # running beams, by number, whose last token completes a stop string
    copies: tuple[int, ...] = ()  # finished texts, by rank after `dropped`, that read like better ones
    layers: int = 1  # layers that the cloud may draw alone, if the forest has none; it answers each
    deadline_ms: int = 0  # 0: none


@dataclass(frozen=True, slots=True)
class BeamVerdict:
    """Cloud to device: the beams after a round."""

    round: int
    running: tuple[BeamStep, ...]
    finished: tuple[BeamStep, ...]  # their last token ends the text
    accepted: int = 0  # drafted beams that stood
    tested: int = 0  # drafted beams that were tested
    queue_us: int = 0
    compute_us: int = 0
    live: tuple[int, ...] = ()  # of each drafted layer that was tested: its draws that continue a surviving beam
    needed: tuple[int, ...] = ()  # of those that stood whole: such draws up to the last one that stood
