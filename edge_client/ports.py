"""The interfaces that the engine uses: the model, the text, and the link to the cloud."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from chaperone_common.frames import Arrived, Capabilities, ClientFrame, Open, ServerFrame
from chaperone_common.session import SessionEvent
from chaperone_common.types import Proposal

TEXT_ROW = 0

Metadata = Sequence[tuple[str, str]]  # names in lower case, and values


class DraftStep(NamedTuple):
    """The result of one forward of the small model."""

    logits: NDArray[np.float32]  # [vocab], without padded ids; valid until the next step
    position: int  # position of the predicted token: the length of the row, including the tokens fed


class DraftModel(Protocol):
    """The small model with the KV caches of one text and of some branches.

    A cache has one row for each. Row `TEXT_ROW` is the text. Rows 1 to `branches` are alternative continuations.
    """

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The text fed so far."""

    @property
    def length(self) -> int:
        """Tokens of the text fed so far."""

    @property
    def branches(self) -> int:
        """Branches that fit next to the text."""

    @property
    def context_tokens(self) -> int:
        """The largest number of tokens that fits into a row."""

    def rewind(self, length: int) -> None:
        """Forget the text's tokens from position `length` on; raises ValueError if the text is shorter."""

    def fork(self, branch: int, length: int) -> None:
        """Begin a branch after the text's first `length` tokens, in place of the branch that its row held before."""

    def adopt(self, branch: int) -> None:
        """Replace the text by the branch, and end the branch; other branches keep their tokens."""

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        """Feed one token or more to the text without blocking the event loop; raises PromptTooLong past the context."""

    def read(self, token_ids: Sequence[int]) -> AsyncIterator[DraftStep]:
        """Feed the text several tokens at once, and yield a step for each; raises PromptTooLong past the context."""

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, DraftStep]:
        """Feed one token to each of these rows, in one forward; raises PromptTooLong past the context."""

    def close(self) -> None:
        """Free the caches."""


class BeamModel(Protocol):
    """The small model with the KV caches of several texts that begin alike."""

    @property
    def context_tokens(self) -> int:
        """The largest number of tokens that a text can have."""

    async def logits(self, texts: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        """Return the logits [vocab] after each of these texts, without padded ids.

        The texts are whole, and differ. Only tokens that are new since the last call are read, without blocking the
        event loop. Raises PromptTooLong past the context, and ValueError for more texts than there are rows.
        """

    def close(self) -> None:
        """Free the caches."""


class Drafter(Protocol):
    """A `DraftModel` that also chooses tokens; its rows are those of `DraftModel`."""

    # Proposals have log-probabilities, with those of this number of the likeliest tokens; None: they have none. It is
    # set before the first step, and only for a request that wants them.
    top_logprobs: int | None

    @property
    def length(self) -> int:
        """Tokens of the text fed so far."""

    @property
    def branches(self) -> int:
        """Branches that fit next to the text."""

    def rewind(self, length: int) -> None:
        """Forget the text's tokens from position `length` on."""

    def fork(self, branch: int, length: int) -> None:
        """Begin a branch after the text's first `length` tokens."""

    def adopt(self, branch: int) -> None:
        """Replace the text by the branch, and end the branch."""

    async def step(self, token_ids: Sequence[int]) -> Proposal:
        """Feed one token or more to the text, and return the proposal for the next position."""

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, Proposal]:
        """Feed one token to each of these rows in one forward, and return the proposal for each."""

    def close(self) -> None:
        """Free the caches."""


class RiskModel(Protocol):
    """A calibrated model of the risk of each token. It receives the events of the text."""

    def with_risk(self, proposal: Proposal) -> Proposal:
        """Return the proposal for the end of the text with its calibrated risk."""

    def follow(self, event: SessionEvent) -> None:
        """Take the next event of the text, in order."""


class Corrections(Protocol):
    """All generations of a client: the places where the cloud chose another token than the device."""

    def judged(self, text: Sequence[int], position: int, proposal: Proposal, token_id: int) -> None:
        """Learn the cloud's token at a position of a text, next to the device's proposal for it."""


class OutputText(Protocol):
    """The text of one generation."""

    def follow(self, event: SessionEvent) -> tuple[SessionEvent, bool]:
        """Return the event with the text that it adds, and True if that text completes a stop string."""

    def flush(self) -> str:
        """Return the rest of the text, after the last token."""

    @property
    def stopped(self) -> bool:
        """True if a stop string was found, in the text of events or of `flush`."""


class CloudLink(Protocol):
    """One stream of frames to and from the supervisor. If it breaks, a Failure frame arrives; nothing is raised."""

    async def open(self, frame: Open) -> None:
        """Start the stream with an Open frame; does not wait for the answer."""

    def send(self, frame: ClientFrame) -> None:
        """Queue a frame; never blocks."""

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        """Take the frames that have arrived, oldest first."""

    async def wait(self, timeout_ms: float) -> bool:
        """Wait until a frame has arrived, and return True; return False after `timeout_ms` without one."""

    def close(self) -> None:
        """Send no more. Answers of the cloud are still received. Idempotent."""

    def cancel(self) -> None:
        """End the stream at once. If it was still open, it ends with a Failure CANCELLED. Idempotent."""

    @property
    def bytes_up(self) -> int:
        """Payload bytes sent."""

    @property
    def bytes_down(self) -> int:
        """Payload bytes received."""


class Cloud(Protocol):
    """One cloud, shared by all generations of a client."""

    @property
    def connected(self) -> bool:
        """True if the connection has not changed since the last capabilities were received."""

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        """Return the cloud's models and limits. Waits up to `timeout_ms` for a connection; raises CloudLost."""

    def link(self, metadata: Metadata = ()) -> CloudLink:
        """Return a new stream, not yet opened; `metadata` travels with it."""

    async def close(self) -> None:
        """Wait briefly for the answers to ended streams, then disconnect."""
