"""All errors that Chaperone raises to its users.

    ChaperoneError
    ├── InvalidRequest            a parameter, prompt or input line that cannot be served
    │   ├── PromptTooLong         more tokens than the context holds
    │   └── ConfigError           a configuration file or flag
    ├── ModelError                the artefacts on disk
    │   ├── ModelMissing          not pulled yet
    │   └── ModelCorrupt          a file differs from its manifest
    ├── PeerMismatch              the two ends cannot work together
    │   ├── TokenizerMismatch     different vocabularies
    │   ├── ModelMismatch         another large model began the text
    │   ├── GateMismatch          the gate was calibrated for other models
    │   └── VersionMismatch       different API versions
    ├── ProtocolViolation         a frame that the protocol does not allow here
    ├── Unauthenticated           the cloud does not know the caller: no token or certificate, or one that is not valid
    ├── PermissionDenied          the cloud knows the caller, and does not allow this
    ├── Overloaded                the cloud refuses for now (see `retry_after_ms`)
    │   └── QuotaExceeded         the tenant has used up its share
    ├── Superseded                a newer stream of the same session took over
    ├── PrefixNotFound            the cloud does not hold the text that an Open refers to; the device sends it
    ├── CloudLost                 the cloud gives no answer; the final tokens are kept
    │   ├── CloudUnavailable      it cannot be reached, or the connection broke
    │   └── CloudTimeout          no answer within the deadline
    ├── OutputLost                a result cannot be written: a full disk, a closed output
    ├── Cancelled                 the user stopped the generation, or set a limit that did
    │   ├── GenerationTimeout     it took longer than its `timeout`
    │   └── CloudShareExceeded    the cloud would choose more of the text than `max_cloud_share` allows
    └── InternalError             a bug on the other end

Messages name the field, the value and the remedy. gRPC statuses are mapped by name in `STATUS_OF` and
`error_from_status`, so that this module needs no gRPC.
"""

from __future__ import annotations

import traceback
from types import CodeType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaperone_common.partial import PartialGeneration


class ChaperoneError(Exception):
    """The root of the tree. `str(error)` is a message for the person who can fix the problem."""

    partial: PartialGeneration | None = None  # the final part of the text, if this error ended a generation

    def __init__(self, message: str, *, retry_after_ms: int | None = None, remedy: str = "") -> None:
        """`remedy` is a part of the message that an application may replace, since its own users have other means."""
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.message: str = self.args[0]
        self.problem = message  # the message without `remedy`
        self.remedy = remedy
        self.retry_after_ms = retry_after_ms


class InvalidRequest(ChaperoneError):
    """A parameter, prompt or input line that cannot be served."""


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for a new token in the model's context."""


class ConfigError(InvalidRequest):
    """A configuration file or flag that cannot be used."""


class ModelError(ChaperoneError):
    """The model files on disk cannot be used."""


class ModelMissing(ModelError):
    """The model was not pulled yet, or CHAPERONE_HOME names another folder."""


class ModelCorrupt(ModelError):
    """A model file differs from its manifest."""


class PeerMismatch(ChaperoneError):
    """Device and cloud cannot work together."""


class TokenizerMismatch(PeerMismatch):
    """Device and cloud have different vocabularies."""


class ModelMismatch(PeerMismatch):
    """Another large model began this text. Two models never write one text."""


class GateMismatch(PeerMismatch):
    """The gate was calibrated for other models."""


class VersionMismatch(PeerMismatch):
    """Device and cloud speak different API versions."""


class ProtocolViolation(ChaperoneError):
    """A frame that the protocol does not allow in this state."""


class Unauthenticated(ChaperoneError):
    """The cloud does not know the caller: no token or certificate, or one that is not valid. Never retried."""


class PermissionDenied(ChaperoneError):
    """The cloud knows the caller, and does not allow this. Never retried."""


class Overloaded(ChaperoneError):
    """The cloud has no room now. `retry_after_ms` is the time to wait before the next attempt."""


class QuotaExceeded(Overloaded):
    """The tenant has used up a quota. `quota` is its name, as in `GetCapabilities`."""

    def __init__(self, message: str, *, quota: str = "", retry_after_ms: int | None = None) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)
        self.quota = quota


class Superseded(ChaperoneError):
    """A newer stream of the same session took over."""


class PrefixNotFound(ChaperoneError):
    """The cloud does not hold the text that an Open refers to. The device sends it, so that no user sees this error."""


class CloudLost(ChaperoneError):
    """The cloud gives no answer. The generation can be resumed from its final tokens."""


class CloudUnavailable(CloudLost):
    """The cloud cannot be reached, or its connection broke in mid-stream."""


class CloudTimeout(CloudLost):
    """The cloud did not answer within the deadline."""


class OutputLost(ChaperoneError):
    """A result cannot be written. Results written before it are complete."""


class Cancelled(ChaperoneError):
    """The user stopped the generation, or set a limit that did."""


class GenerationTimeout(Cancelled):
    """The generation did not end within its `timeout`."""


class CloudShareExceeded(Cancelled):
    """The cloud would choose more of the text than `max_cloud_share` allows."""


class InternalError(ChaperoneError):
    """A bug on the other end. The log of that process has the details."""


# `status_of` takes the first match along the class's method resolution order.
STATUS_OF: dict[type[ChaperoneError], str] = {
    InvalidRequest: "INVALID_ARGUMENT",
    ModelError: "FAILED_PRECONDITION",
    PeerMismatch: "FAILED_PRECONDITION",
    VersionMismatch: "UNIMPLEMENTED",
    ProtocolViolation: "OUT_OF_RANGE",
    Unauthenticated: "UNAUTHENTICATED",
    PermissionDenied: "PERMISSION_DENIED",
    Overloaded: "RESOURCE_EXHAUSTED",
    Superseded: "ABORTED",
    PrefixNotFound: "NOT_FOUND",
    CloudTimeout: "DEADLINE_EXCEEDED",
    CloudLost: "UNAVAILABLE",
    Cancelled: "CANCELLED",
    ChaperoneError: "INTERNAL",
}

ERROR_OF: dict[str, type[ChaperoneError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "FAILED_PRECONDITION": PeerMismatch,
    "UNIMPLEMENTED": VersionMismatch,
    "OUT_OF_RANGE": ProtocolViolation,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": Overloaded,
    "ABORTED": Superseded,
    "DEADLINE_EXCEEDED": CloudTimeout,
    "UNAVAILABLE": CloudUnavailable,
    "CANCELLED": Cancelled,
}


def status_of(error: ChaperoneError) -> str:
    """Return the name of the gRPC status that reports this error."""
    return next(STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF)


# One status can report several errors. The field at the beginning of the message distinguishes them.
ERROR_OF_FIELD: dict[tuple[str, str], type[ChaperoneError]] = {
    ("FAILED_PRECONDITION", "model_digest"): ModelMismatch,
    ("FAILED_PRECONDITION", "tokenizer_digest"): TokenizerMismatch,
    ("FAILED_PRECONDITION", "model_files"): ModelMissing,
    ("NOT_FOUND", "prefix"): PrefixNotFound,  # a proxy may say that about the service
    ("RESOURCE_EXHAUSTED", "quota"): QuotaExceeded,
}


def error_from_status(status: str, message: str, *, retry_after_ms: int | None = None) -> ChaperoneError:
    """Return the error that a gRPC status reports, by the status name. An unknown status is a bug of the other end."""
    field = message.partition(":")[0]
    kind = ERROR_OF_FIELD.get((status, field)) or ERROR_OF.get(status, InternalError)
    return kind(message, retry_after_ms=retry_after_ms)


def trace_of(error: BaseException) -> str:
    """Return the type of an error, the calls that led to it, innermost first, and its causes, on one line.

    Its message is left out, and so are all values: those of an unexpected error may hold a text or its tokens. The log
    gets this line instead of a traceback.
    """
    traces: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        calls = [_call(frame.f_code, line) for frame, line in traceback.walk_tb(cause.__traceback__)]
        traces.append(" < ".join([type(cause).__name__, *reversed(calls)]))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "; after ".join(traces)


def _call(code: CodeType, line: int) -> str:
    file = "/".join(code.co_filename.split("/")[-2:])
    return f"{code.co_name} ({file}:{line})"
