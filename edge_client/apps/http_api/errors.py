"""Errors in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any, NamedTuple

from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudLost,
    CloudTimeout,
    GenerationTimeout,
    InvalidRequest,
    ModelError,
    Overloaded,
    PeerMismatch,
    PermissionDenied,
    PromptTooLong,
    Unauthenticated,
)


class ApiError(Exception):
    """An error with the status and body of an HTTP answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        fields = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        # A name in a request may hold a lone surrogate, which no encoding has.
        printable = {key: text and text.encode("utf-8", "backslashreplace").decode() for key, text in fields.items()}
        return {"error": printable}


class _Kind(NamedTuple):
    status: int
    kind: str
    code: str


# The first match along an error's classes counts.
_KINDS: dict[type[ChaperoneError], _Kind] = {
    PromptTooLong: _Kind(400, "invalid_request_error", "context_length_exceeded"),
    InvalidRequest: _Kind(400, "invalid_request_error", "invalid_value"),
    Overloaded: _Kind(429, "rate_limit_error", "rate_limit_exceeded"),
    CloudTimeout: _Kind(504, "server_error", "cloud_timeout"),
    CloudLost: _Kind(503, "server_error", "cloud_unavailable"),
    Unauthenticated: _Kind(502, "server_error", "cloud_unauthenticated"),
    PermissionDenied: _Kind(502, "server_error", "cloud_permission_denied"),
    PeerMismatch: _Kind(502, "server_error", "cloud_mismatch"),
    ModelError: _Kind(500, "server_error", "model_error"),
    GenerationTimeout: _Kind(504, "server_error", "timeout"),
    Cancelled: _Kind(503, "server_error", "cancelled"),
    ChaperoneError: _Kind(500, "server_error", "internal_error"),
}


# The API's names for parameters of the SDK.
API_NAMES = {
    "max_new_tokens": "max_tokens",
    "message": "messages",
    "on_overflow": "chaperone.on_overflow",
    "num_beams": "best_of",
    "num_return_sequences": "n",
    **{
        name: f"chaperone.{name}"
        for name in (
            *("mode", "catch", "max_deviation", "max_cloud_share", "top_k", "min_p"),
            *("beam_width", "beam_threshold", "length_penalty", "early_stopping", "one_cache"),
        )
    },
}
# Parameters whose errors may name the number of beams, too.
_OF_BEAMS = (
    *("num_beams", "num_return_sequences", "beam_width", "beam_threshold", "length_penalty", "early_stopping"),
    "one_cache",
)


def api_error(error: ChaperoneError, prompt: str) -> ApiError:
    """Return an error of the SDK as one of the API, with the API's name of the field; `prompt` is that of the text."""
    kind = next(_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS)
    message, param = error.message, None
    if isinstance(error, CloudLost):
        has_beams = error.partial is not None and error.partial.params.beams is not None
        instead = '{"best_of": 1, "chaperone": {"mode": "edge"}}' if has_beams else '{"chaperone": {"mode": "edge"}}'
        message = f"{error.problem}; or write {'one text ' if has_beams else ''}without it: {instead}"
    if isinstance(error, InvalidRequest):
        name, colon, rest = message.partition(":")
        param = prompt if name == "prompt" else API_NAMES.get(name, name)
        if name in _OF_BEAMS:
            rest = rest.replace("num_beams", API_NAMES["num_beams"])
        message = f"{param}{colon}{rest}"
    retry_after_s = None if error.retry_after_ms is None else error.retry_after_ms / 1e3
    return ApiError(kind.status, message, kind=kind.kind, code=kind.code, param=param, retry_after_s=retry_after_s)
