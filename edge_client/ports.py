"""What the engine needs from the outside world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from common.messages import Capabilities, ClientFrame, Open, ServerFrame


class DraftStep(NamedTuple):
    """One forward of the small model; the arrays are valid until the next step."""

    logits: NDArray[np.float32]  # [vocab], for the position after the last token fed; ids of the tokenizer only
    hidden: NDArray[np.float32] | None  # [width] of the same position, where the model exports it


class DraftModel(Protocol):
    """The small model's view of one sequence: a KV cache that can be rewound."""

    @property
    def length(self) -> int:
        """Tokens fed so far."""

    @property
    def context_tokens(self) -> int:
        """Tokens that fit at most."""

    def rewind(self, length: int) -> None:
        """Forget the tokens from position `length` on; rewinding forward is a ValueError."""

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        """Feed one token or more without blocking the event loop; raises PromptTooLong past the context."""

    def close(self) -> None:
        """Give the cache back."""


class OutputText(Protocol):
    """Turns committed tokens into text."""

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text that a token completes, and whether a stop string was completed with it."""

    def flush(self) -> str:
        """The rest of the text, once no token follows."""


class CloudLink(Protocol):
    """One stream of frames to the supervisor. Losing it is a Failure frame, never an exception."""

    async def open(self, frame: Open) -> None:
        """Start the stream; does not wait for the answer."""

    def send(self, frame: ClientFrame) -> None:
        """Queue a frame; never blocks."""

    def ready(self) -> Sequence[ServerFrame]:
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

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        """Ask what the cloud serves; raises CloudLost."""

    def link(self) -> CloudLink:
        """A new stream, not yet opened."""

    async def close(self) -> None:
        """Give ended streams a moment to be answered, then hang up."""
