"""What the engine needs from the outside world."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from chaperone_common.frames import Arrived, Capabilities, ClientFrame, Open, ServerFrame
from chaperone_common.session import SessionEvent
from chaperone_common.types import Proposal

TEXT_ROW = 0


class DraftStep(NamedTuple):
    """One forward of the small model; the arrays are valid until the next step."""

    logits: NDArray[np.float32]  # [vocab]; ids of the tokenizer only
    position: int  # of the token that they choose: the length of the row, including the tokens fed


class DraftModel(Protocol):
    """The small model's view of one text and of some branches: KV caches that can be rewound.

    Row `TEXT_ROW` is the text; rows 1 to `branches` are continuations that the text may take instead.
    """

    @property
    def length(self) -> int:
        """Tokens of the text fed so far."""

    @property
    def branches(self) -> int:
        """How many branches fit beside the text."""

    @property
    def context_tokens(self) -> int:
        """Tokens that fit at most."""

    def rewind(self, length: int) -> None:
        """Forget the text's tokens from position `length` on; rewinding forward is a ValueError."""

    def fork(self, branch: int, length: int) -> None:
        """Let a branch begin behind the text's first `length` tokens; what the row held before is forgotten."""

    def adopt(self, branch: int) -> None:
        """Let the text go on as the branch does, which ends with it; rows of other branches keep what they hold."""

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        """Feed the text one token or more without blocking the event loop; raises PromptTooLong past the context."""

    def read(self, token_ids: Sequence[int]) -> AsyncIterator[DraftStep]:
        """Feed the text, some tokens at once, and tell what follows each; raises PromptTooLong past the context."""

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, DraftStep]:
        """Feed one token to each of these rows, in one forward; raises PromptTooLong past the context."""

    def close(self) -> None:
        """Give the caches back."""


class Drafter(Protocol):
    """What the engine drafts with: a `DraftModel` that has chosen. Rows are those of `DraftModel`."""

    @property
    def length(self) -> int:
        """Tokens of the text fed so far."""

    @property
    def branches(self) -> int:
        """How many branches fit beside the text."""

    def rewind(self, length: int) -> None:
        """Forget the text's tokens from position `length` on."""

    def fork(self, branch: int, length: int) -> None:
        """Let a branch begin behind the text's first `length` tokens."""

    def adopt(self, branch: int) -> None:
        """Let the text go on as the branch does, which ends with it."""

    async def step(self, token_ids: Sequence[int]) -> Proposal:
        """Feed the text one token or more; what it would write next."""

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, Proposal]:
        """Feed one token to each of these rows, in one forward; what each would write next."""

    def close(self) -> None:
        """Give the caches back."""


class RiskModel(Protocol):
    """Knows better than a signal alone how risky the text's next token is."""

    def with_risk(self, proposal: Proposal) -> Proposal:
        """The same proposal for the end of the text, with its calibrated risk."""

    def follow(self, event: SessionEvent) -> None:
        """Take in what happened to the text, in order."""


class OutputText(Protocol):
    """The text of one generation."""

    def follow(self, event: SessionEvent) -> tuple[SessionEvent, bool]:
        """Return the event with the text it adds, and True if a stop string was completed with it."""

    def flush(self) -> str:
        """Return the rest of the text, once no token follows."""

    @property
    def stopped(self) -> bool:
        """True if a stop string was met, also in the text that `flush` returned."""


class CloudLink(Protocol):
    """One stream of frames to the supervisor. Losing it is a Failure frame, never an exception."""

    async def open(self, frame: Open) -> None:
        """Start the stream; does not wait for the answer."""

    def send(self, frame: ClientFrame) -> None:
        """Queue a frame; never blocks."""

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        """Take the frames that have arrived, oldest first."""

    async def wait(self, timeout_ms: float) -> bool:
        """Sleep until a frame is there to take, or the time is up (False)."""

    def close(self) -> None:
        """Send no more; what the cloud still answers is read in the background. Idempotent."""

    def cancel(self) -> None:
        """End the stream at once; unless it has ended, whoever waits is told by a Failure CANCELLED. Idempotent."""

    @property
    def bytes_up(self) -> int:
        """Payload bytes sent."""

    @property
    def bytes_down(self) -> int:
        """Payload bytes received."""


class Cloud(Protocol):
    """The way to one cloud, shared by all generations of a client."""

    @property
    def connected(self) -> bool:
        """Whether the connection stands over which the cloud was last asked."""

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        """Ask what the cloud serves; waits for a connection until the time is up. Raises CloudLost."""

    def link(self) -> CloudLink:
        """A new stream, not yet opened."""

    async def close(self) -> None:
        """Give ended streams a moment to be answered, then hang up."""
