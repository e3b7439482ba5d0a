"""The final part of a generation that failed. It holds everything that resuming needs."""

from __future__ import annotations

from dataclasses import dataclass

from chaperone_common.beams.frames import RunningBeam
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.logprobs import TokenLogprobs
from chaperone_common.suggestion import summary
from chaperone_common.types import GenerationParams, Mode, Origin, Promises


@dataclass(frozen=True, slots=True)
class PartialBeams:
    """The beams of a text whose generation failed."""

    running: tuple[RunningBeam, ...]
    finished: tuple[Hypothesis, ...]


@dataclass(frozen=True, slots=True)
class PartialGeneration:
    """The committed tokens of a text whose generation failed, and the rules by which it is written."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # all committed tokens after the prompt, including those of an earlier part
    text: str  # of the failed part alone
    origins: tuple[Origin, ...]  # of the failed part alone, one for each token
    params: GenerationParams  # with the seed that was drawn
    mode: Mode
    promises: Promises  # used in gated mode
    model_digest: str = ""  # the large model that began the text; "" accepts any
    max_cloud_share: float | None = None  # used in gated mode
    cloud_tokens: int = 0  # how many of `token_ids` the cloud chose, as far as known
    logprobs: tuple[TokenLogprobs, ...] | None = None  # of the failed part alone, if the request asked for them
    promises_hold: bool | None = True  # of `token_ids`; None if mode `edge` wrote all of them
    beams: PartialBeams | None = None  # all of which begin with `token_ids`; None for a single text, or before any

    def __repr__(self) -> str:
        """Return the beginning of the text and the main counts; the attributes have all of it."""
        return f"PartialGeneration({summary(self.text, len(self.token_ids))}, mode: {self.mode})"
