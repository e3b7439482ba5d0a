"""What happens to a generation, for those who watch it.

`Drafted`, `Committed`, `Retracted` and `Audited` follow each other in any number; exactly one `Finished` or `Failed`
ends it.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ChaperoneError
from common.stats import GenerationStats
from common.types import FinishReason, Origin, Signal


@dataclass(frozen=True, slots=True)
class Drafted:
    """A provisional token: show `EdgeClient.token_text` of it as such, or wait for `Committed`, which has its text."""

    position: int
    token_id: int
    signal: Signal
    fired: bool = False  # the gate has the cloud asked about it; always so at an end of text


@dataclass(frozen=True, slots=True)
class Retracted:
    """Provisional tokens from `position` on are withdrawn."""

    position: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A final token; `text` is what it adds to the output, whole characters only."""

    position: int
    token_id: int
    origin: Origin
    text: str = ""


@dataclass(frozen=True, slots=True)
class Audited:
    """The cloud has read tokens from `start` up to `end` that were final already; `deviations` are not its choice.

    Where only a share of the generations is audited, each of them stands for `weight`.
    """

    start: int
    end: int
    deviations: tuple[int, ...] = ()  # positions
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended well; `text` is the rest of the output that no token completed."""

    finish_reason: FinishReason
    stats: GenerationStats
    text: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The generation ended early; all `Committed` tokens stand and can be resumed from."""

    error: ChaperoneError
    stats: GenerationStats
    text: str = ""


SessionEvent = Drafted | Retracted | Committed | Audited
Event = SessionEvent | Finished | Failed
