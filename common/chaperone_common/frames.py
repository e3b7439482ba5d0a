"""The frames of one generation, as values; `proto/` is their specification and `wire` their encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from chaperone_common.beams.frames import BeamSettings, BeamVerdict, ForestFrame
from chaperone_common.conditioning import Encoding
from chaperone_common.logprobs import ChoiceLogprobs
from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams, SessionId

API_VERSION = 1
PREFIX_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first tokens of a prompt, by an earlier session whose text the cloud may still hold."""

    session_id: SessionId
    length: int
    digest: bytes  # of these tokens; see `session.prefixes`


@dataclass(frozen=True, slots=True)
class EncodingRequest:
    """A wish for the encoding of the prompt, from position `start` on."""

    projector_digest: str  # of the projector that the device's model was trained with
    start: int = 0  # the device has the rows before it


@dataclass(frozen=True, slots=True)
class Open:
    """Device to cloud, first: the text to read, and the rules of choosing."""

    session_id: SessionId
    tokenizer_digest: str
    sampling: SamplingParams
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]  # without those of `prefix`
    committed_token_ids: tuple[int, ...] = ()  # tokens that a resumed generation has committed
    model_digest: str = ""  # the model that must write the text; "" accepts any
    api_version: int = API_VERSION
    prefix: Prefix | None = None
    top_logprobs: int | None = None  # report log-probabilities, with this number of the likeliest tokens; None: none
    encoding: EncodingRequest | None = None  # None: none is wanted
    beams: BeamSettings | None = None  # several texts at once; None: one


@dataclass(frozen=True, slots=True)
class Draft:
    """Device to cloud: tokens from position `start` on, and branch tokens next to them.

    Tokens below `final_before` are only audited. They are committed, or will be if the spans before them stand. If the
    position after the last token is not below it, the cloud chooses that token. No tokens at all asks the cloud to
    write.
    """

    revision: int
    start: int
    token_ids: tuple[int, ...]
    risks: tuple[float, ...]  # one per token, in [0, 1], or none; one byte each on the wire
    final_before: int
    continuation_tokens: int = 0  # tokens of a takeover that are welcome after an override
    deadline_ms: int = 0  # 0: as in the Draft before, or none in the first
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
    """Device to cloud, last: the committed tokens from `start` on that the cloud has not read yet."""

    start: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """Cloud to device: the session is open. A second one reports that the prompt's KV is ready."""

    prefilled: bool
    context_tokens: int
    queue_us: int = 0
    compute_us: int = 0
    max_span_tokens: int = 0  # that one Draft may carry, branches included; 0: unknown
    cached_tokens: int = 0  # of the prompt, that were not computed


@dataclass(frozen=True, slots=True)
class Encoded:
    """Cloud to device: the next rows of the prompt's encoding."""

    rows: Encoding
    digest: bytes = b""  # of all rows of the stream; in the last frame alone


@dataclass(frozen=True, slots=True)
class Verdict:
    """Cloud to device: the span stands up to `position`, where the cloud's own token is `token_id`.

    If a branch of the Draft begins with that token, `further_token_ids` follow it: the branch tokens that stand, and
    one more token of the cloud's own.
    """

    revision: int
    position: int
    token_id: int
    deviations: tuple[int, ...] = ()  # positions of committed tokens that differ from the cloud's choice
    queue_us: int = 0
    compute_us: int = 0
    further_token_ids: tuple[int, ...] = ()
    logprobs: tuple[ChoiceLogprobs, ...] = ()  # of the tokens that become final; the last one ends the Verdict


@dataclass(frozen=True, slots=True)
class Continuation:
    """Cloud to device: tokens of a takeover, from position `start` on; `handed_back` ends it."""

    start: int
    token_ids: tuple[int, ...]
    handed_back: bool
    queue_us: int = 0
    compute_us: int = 0
    logprobs: tuple[ChoiceLogprobs, ...] = ()  # one for each token, or none


@dataclass(frozen=True, slots=True)
class Closed:
    """Cloud to device, last: the closing audit is done."""

    deviations: tuple[int, ...] = ()
    queue_us: int = 0
    compute_us: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Cloud to device, last: the reason why the stream ends. `status` is the name of a gRPC status."""

    status: str
    message: str
    retry_after_ms: int | None = None
    quota: str = ""  # of the tenant, that was used up; it travels in the status of the stream


ClientFrame = Open | Draft | ForestFrame | Close
ServerFrame = Opened | Encoded | Verdict | BeamVerdict | Continuation | Closed | Failure

FrameT = TypeVar("FrameT", ClientFrame, ServerFrame)


class Arrived(NamedTuple, Generic[FrameT]):
    """A frame and its time of arrival: it may wait until its end is ready for it, and deadlines count from there."""

    frame: FrameT
    at: float  # seconds, by the clock of the end that received it


@dataclass(frozen=True, slots=True)
class QuotaState:
    """One limit of the caller's tenant, and how much of it is used now."""

    name: str
    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """The sizes of the frames that one end accepts from the other. `wire` checks them before it makes any value."""

    max_message_bytes: int = 1 << 20
    # Prompt and committed tokens of an Open together; tokens of a Close or a Continuation; deviations of a Closed.
    max_text_tokens: int = 1 << 18
    # Tokens of a Draft, branches included; deviations and further tokens of a Verdict.
    max_span_tokens: int = 4096
    max_eos_token_ids: int = 64
    max_encoded_rows: int = 256  # of an Encoded; one row has at most `max_encoded_width` numbers
    max_encoded_width: int = 1 << 14

    @property
    def max_draft_bytes(self) -> int:
        """The size of the largest Draft: an id, a parent and a risk for each token, and room for all other fields."""
        return min(self.max_message_bytes, 1024 + 13 * self.max_span_tokens)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The model and limits of a cloud; requested once per channel, before the first stream."""

    api_version: int
    model: str
    tokenizer_digest: str
    vocabulary_size: int
    context_tokens: int
    max_span_tokens: int
    model_digest: str = ""  # of weights and recipe; "": unknown
    quotas: tuple[QuotaState, ...] = ()  # of the tenant that asked
    kept_texts: int = 0  # texts of ended sessions that an Open may refer to as its prefix
    max_top_logprobs: int | None = None  # that an Open may ask for; None: this cloud reports no log-probabilities
    projector_digest: str = ""  # of the projector that encodes prompts; "": this cloud encodes none
    max_encoded_tokens: int = 0  # of a prompt
    max_beams: int = 0  # that an Open may ask for; 0: this cloud serves none


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Device to cloud: send a file of the device's model, from `offset` on."""

    pair: str
    file: str = ""  # "": the manifest
    sha256: str = ""  # of the file, as in the device's manifest; "" for the manifest
    offset: int = 0  # bytes
