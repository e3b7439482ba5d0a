"""The frames of one generation, as values; `proto/` is their specification and `wire` their encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams, SessionId

API_VERSION = 1


@dataclass(frozen=True, slots=True)
class Open:
    """Device to cloud, first: what to read, and by which rules to choose."""

    session_id: SessionId
    tokenizer_digest: str
    sampling: SamplingParams
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    committed_token_ids: tuple[int, ...] = ()  # of a generation that is resumed
    model_digest: str = ""  # of the model that is to write the text; "" takes any
    api_version: int = API_VERSION


@dataclass(frozen=True, slots=True)
class Draft:
    """Device to cloud: tokens from position `start` on, and alternatives beside them.

    Those below `final_before` are committed, or will be if what was sent before stands, and only audited; the token
    behind the last may be among them. Else the cloud chooses that one. No tokens at all asks the cloud to write.
    """

    revision: int
    start: int
    token_ids: tuple[int, ...]
    risks: tuple[float, ...]  # one a token, in [0, 1], or none at all; one byte each on the wire
    final_before: int
    continuation_tokens: int = 0
    deadline_ms: int = 0  # 0: as in the Draft before; none in the first
    branches: tuple[BranchToken, ...] = ()

    @property
    def end(self) -> int:
        """The position after the last token of the chain."""
        return self.start + len(self.token_ids)

    @property
    def tree(self) -> TokenTree:
        """The chain, with its branches next to it; raises ValueError for a frame that starts before any token."""
        return TokenTree(self.token_ids, self.branches, self.start)


@dataclass(frozen=True, slots=True)
class Close:
    """Device to cloud, last: the committed tokens from `start` on that the cloud has not read."""

    start: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """Cloud to device: the session stands; a second one says that the prompt's KV is ready."""

    prefilled: bool
    context_tokens: int
    queue_us: int = 0
    compute_us: int = 0
    max_span_tokens: int = 0  # that one Draft may carry, branches included; 0 where the cloud does not tell


@dataclass(frozen=True, slots=True)
class Verdict:
    """Cloud to device: the span stands up to `position`, where the cloud's own token is `token_id`.

    Where that token begins a branch of the Draft, `further_token_ids` are those after it: the branch tokens that stand,
    and one more of the cloud's own.
    """

    revision: int
    position: int
    token_id: int
    deviations: tuple[int, ...] = ()  # positions of committed tokens that the cloud would have chosen otherwise
    queue_us: int = 0
    compute_us: int = 0
    further_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Continuation:
    """Cloud to device: tokens of a takeover, from position `start` on; `handed_back` ends it."""

    start: int
    token_ids: tuple[int, ...]
    handed_back: bool
    queue_us: int = 0
    compute_us: int = 0


@dataclass(frozen=True, slots=True)
class Closed:
    """Cloud to device, last: the closing audit is done."""

    deviations: tuple[int, ...] = ()
    queue_us: int = 0
    compute_us: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Cloud to device, last: why the stream ends. `status` is the name of a gRPC status."""

    status: str
    message: str
    retry_after_ms: int | None = None


ClientFrame = Open | Draft | Close
ServerFrame = Opened | Verdict | Continuation | Closed | Failure

FrameT = TypeVar("FrameT", ClientFrame, ServerFrame)


class Arrived(NamedTuple, Generic[FrameT]):
    """A frame and its time of arrival: it may wait until its end is ready for it, and deadlines count from there."""

    frame: FrameT
    at: float  # seconds, by the clock of the end that received it


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a cloud serves; asked for once a channel, before the first stream."""

    api_version: int
    model: str
    tokenizer_digest: str
    vocabulary_size: int
    context_tokens: int
    max_span_tokens: int
    model_digest: str = ""  # of weights and recipe; "" where the cloud does not tell
