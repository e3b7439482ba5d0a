"""The events of a generation.

`Drafted`, `Committed`, `Retracted`, `Audited` and `Unverified` follow each other in any number; exactly one `Finished`
or `Failed` ends it. Each has a `text`, which is empty where the event adds none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chaperone_common.errors import ChaperoneError
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason, Origin, Proposal, Signal


@dataclass(frozen=True, slots=True)
class Drafted:
    """A provisional token; `text` is what it adds to the provisional text, whole characters only.

    Show it as such, or wait for `Committed`, which brings the text again once it is final.
    """

    position: int
    token_id: int
    signal: Signal
    fired: bool = False  # the gate has the cloud asked about it; always so at an end of text
    text: str = ""


@dataclass(frozen=True, slots=True)
class Retracted:
    """Provisional tokens from `position` on are withdrawn, and their text with them."""

    text: ClassVar[str] = ""
    position: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A final token; `text` is what it adds to the output, whole characters only.

    Events are equal if they say the same about the text, whatever the device had proposed.
    """

    position: int
    token_id: int
    origin: Origin
    text: str = ""
    # The device's proposal for this position. None if the cloud wrote here first.
    proposal: Proposal | None = field(default=None, compare=False, repr=False)
    # The gate asked the cloud about the proposal.
    fired: bool = field(default=False, compare=False, repr=False)

    @property
    def replaced(self) -> Proposal | None:
        """The device's proposal, if the cloud's token took its place."""
        return self.proposal if self.proposal is not None and self.proposal.token_id != self.token_id else None


@dataclass(frozen=True, slots=True)
class Audited:
    """The cloud has read tokens from `start` up to `end` that were final already; `deviations` are not its choice.

    Where only a share of the generations is audited, each of them stands for `weight`.
    """

    text: ClassVar[str] = ""
    start: int
    end: int
    deviations: tuple[int, ...] = ()  # positions
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Unverified:
    """The cloud is lost, and the device goes on alone: tokens from `position` on are final, and nobody checks them."""

    text: ClassVar[str] = ""
    position: int
    error: ChaperoneError  # how the cloud was lost


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended well; `text` is the rest of the output that no token completed."""

    finish_reason: FinishReason
    stats: GenerationStats
    text: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The generation ended early; all `Committed` tokens stand, and `error.partial` is what to resume from."""

    error: ChaperoneError
    stats: GenerationStats
    text: str = ""


SessionEvent = Drafted | Retracted | Committed | Audited
Event = SessionEvent | Unverified | Finished | Failed
