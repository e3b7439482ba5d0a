"""The events of a generation.

`Drafted`, `Committed`, `Retracted`, `Audited`, `Unverified` and `CloudShareReached` come in any number and order.
Exactly one `Finished` or `Failed` ends the generation. Each event has a `text`, which is empty if the event adds none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chaperone_common.errors import ChaperoneError
from chaperone_common.logprobs import TokenLogprobs
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason, Origin, Proposal, Signal


@dataclass(frozen=True, slots=True)
class Drafted:
    """A provisional token; `text` is the provisional text that it adds, whole characters only.

    Show it as provisional, or wait for `Committed`, which carries the text again once it is final.
    """

    position: int
    token_id: int
    signal: Signal
    fired: bool = False  # the gate asks the cloud about it; always true for end-of-text
    text: str = ""


@dataclass(frozen=True, slots=True)
class Retracted:
    """The withdrawal of the provisional tokens from `position` on, and of their text."""

    text: ClassVar[str] = ""
    position: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A final token; `text` is the output that it adds, whole characters only.

    Two events are equal if they say the same about the text. Log-probabilities and the device's proposal do not count.
    """

    position: int
    token_id: int
    origin: Origin
    text: str = ""
    # None unless the request asked for them.
    logprobs: TokenLogprobs | None = field(default=None, compare=False, repr=False)
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
    """The cloud's audit of the final tokens from `start` up to `end`; it would have chosen others at `deviations`.

    If only a share of the generations is audited, each of them stands for `weight` generations.
    """

    text: ClassVar[str] = ""
    start: int
    end: int
    deviations: tuple[int, ...] = ()  # positions
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Unverified:
    """The loss of the cloud: the device goes on alone, and its tokens from `position` on are final and unchecked."""

    text: ClassVar[str] = ""
    position: int
    error: ChaperoneError  # the reason


@dataclass(frozen=True, slots=True)
class CloudShareReached:
    """The ceiling on the cloud's share: the device goes on without asking, from the token at `position` on.

    Tokens that the gate would have asked about are final and have the origin `UNVERIFIED`. The promises do not cover
    them. The gate asks again once the ceiling leaves room. Then this event may come again.
    """

    text: ClassVar[str] = ""
    position: int
    # Final tokens that the cloud chose itself. While it writes, also those that it was asked to write.
    cloud_tokens: int
    tokens: int  # all final tokens after the prompt, or 32 if there are fewer
    limit: float  # `max_cloud_share`

    @property
    def share(self) -> float:
        """The cloud's share, as the ceiling measures it."""
        return self.cloud_tokens / self.tokens

    @property
    def reason(self) -> str:
        """The setting and the figures, as a message for users."""
        return (
            f"max_cloud_share: the cloud chose {self.cloud_tokens} tokens, and {self.limit} of {self.tokens} tokens "
            "allows no more"
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """The good end of the generation; `text` is the rest of the output, which no token completed."""

    finish_reason: FinishReason
    stats: GenerationStats
    text: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The early end of the generation; all `Committed` tokens stay final. Resume it from `error.partial`."""

    error: ChaperoneError
    stats: GenerationStats
    text: str = ""


SessionEvent = Drafted | Retracted | Committed | Audited
