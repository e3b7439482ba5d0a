"""The requests of OpenAI's API: parsed, checked, and turned into parameters of a generation.

What this endpoint does not support is refused by name, unless the value asks for nothing.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from chaperone_common.ranges import MAX_BEAMS, MAX_SEED, MAX_TOP_LOGPROBS
from chaperone_common.suggestion import cut, did_you_mean, shown
from chaperone_common.types import Mode
from edge_client.apps.http_api.errors import API_NAMES, ApiError
from edge_client.conversation import OnOverflow
from edge_client.parameters import RequestParameters
from edge_client.refused_names import instead_of

MOST_CHOICES = 8  # of one request
MOST_STOPS = 16

# The modes of Firebase AI Logic's hybrid inference, and ours that is nearest. `only_on_device` sends nothing.
LOCALITIES = {
    "only_on_device": Mode.EDGE,
    "prefer_on_device": Mode.GATED,
    "prefer_in_cloud": Mode.EXACT,
    "only_in_cloud": Mode.CLOUD,
}
Locality = Literal["only_on_device", "prefer_on_device", "prefer_in_cloud", "only_in_cloud"]

# Parameters that are not supported, with the values that ask for nothing; None always does.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Parameters about the caller or the service, which change no text.
_IGNORED = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)

# Sentences in place of those of `instead_of`, whose remedies are the SDK's.
_INSTEAD = {
    "input": "send messages to /v1/chat/completions, or a prompt to /v1/completions",
    "max_time": "close the connection to end a text",
    "messages": "send it to /v1/chat/completions",
    "num_return_sequences": f"give n for several texts, up to {MOST_CHOICES}",
    "use_beam_search": "give best_of, and temperature 0 for beam search",
    **dict.fromkeys(
        ("tools", "tool_choice", "functions", "function_call"),
        "leave it out; the Python SDK takes tools=, which only the chat template reads, and returns calls as text",
    ),
    "prompt": "send it to /v1/completions, or as messages",
    "system": 'put it into messages, as {"role": "system", "content": ...}',
}

_KINDS = ("str", "int", "list[str]", "list[int]")  # by which pydantic names the kinds of one field

RequestT = TypeVar("RequestT", bound="_Request")


def _no_number(logprobs: Any) -> Any:
    """Return False for 0, by which a completion asks for the chosen tokens alone, and a chat for nothing."""
    return False if type(logprobs) is int and logprobs == 0 else logprobs


def _no_flag(logprobs: Any) -> Any:
    """Return None for False, by which a chat asks for nothing."""
    return None if logprobs is False else logprobs


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """The parts of a stream next to the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChaperoneOptions(_Strict):
    """The inputs that OpenAI's API has no name for; `extra_body={"chaperone": {...}}` with its client."""

    mode: Literal["exact", "gated", "edge", "cloud", "conditioned"] | None = None
    locality: Locality | None = None
    catch: float | None = None
    max_deviation: float | None = None
    max_cloud_share: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    num_beams: int | None = None
    beam_width: int | str | None = None
    beam_threshold: float | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    one_cache: bool | None = None
    on_overflow: OnOverflow | None = None


class _Request(_Strict, ABC):
    model: str = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(default=None, ge=1, le=MAX_BEAMS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chaperone: ChaperoneOptions | None = None

    @property
    def choices(self) -> int:
        """Texts that are wanted."""
        return self.n or 1

    @property
    def beams(self) -> bool:
        """True if the texts that are wanted are the best of one search."""
        options = self.chaperone or ChaperoneOptions()
        return max(self.best_of or 1, options.num_beams or 1) > 1

    @property
    def most_tokens(self) -> int | None:
        """The limit of a text."""
        return self.max_tokens

    @property
    @abstractmethod
    def reported(self) -> int | None:
        """The likeliest tokens to report at each position; None if no log-probabilities are wanted."""

    def parameters(self) -> RequestParameters:
        """Return the parameters of a generation; raises ApiError for a mode and a locality that contradict."""
        options = self.chaperone or ChaperoneOptions()
        return RequestParameters(
            mode=_mode(options),
            catch=options.catch,
            max_deviation=options.max_deviation,
            max_cloud_share=options.max_cloud_share,
            top_k=options.top_k,
            min_p=options.min_p,
            best_of=self.best_of,
            num_beams=options.num_beams,
            num_return_sequences=self.n if self.beams else None,
            beam_width=options.beam_width,
            beam_threshold=options.beam_threshold,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            one_cache=options.one_cache,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop,
            max_new_tokens=self.most_tokens,
            logprobs=self.reported is not None,
            top_logprobs=self.reported,
        )


class ChatRequest(_Request):
    """The body of `POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: Annotated[bool | None, BeforeValidator(_no_number)] = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def reported(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """The body of `POST /v1/completions`."""

    prompt: str | list[int] | list[str] = Field(min_length=1)
    logprobs: Annotated[int | None, BeforeValidator(_no_flag)] = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def reported(self) -> int | None:
        return self.logprobs

    @property
    def text(self) -> str | tuple[int, ...]:
        """The text or its token ids; raises ApiError for several texts."""
        if isinstance(self.prompt, str):
            return self.prompt
        texts = [part for part in self.prompt if isinstance(part, str)]
        if len(texts) > 1:
            message = f"prompt: {len(texts)} texts; send one in a request"
            raise ApiError(400, message, code="unsupported_value", param="prompt")
        return texts[0] if texts else tuple(part for part in self.prompt if isinstance(part, int))


def parse(kind: type[RequestT], body: bytes, model: str, num_beams: int = 1) -> RequestT:
    """Return the request in a body; raises ApiError that names the field, the value and the remedy.

    `model` is the only one that is served. `num_beams` is configured, for requests that say nothing about beams.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: it is not JSON: {error}; send a JSON object", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "body: it is not a JSON object; send one", code="invalid_json")
    wanted = {name: value for name, value in fields.items() if name not in _IGNORED}
    wanted = {name: value for name, value in wanted.items() if name in kind.model_fields or _asks(name, value)}
    for name, value in wanted.items():
        if name not in kind.model_fields:
            raise _refused(name, value, kind)
    try:
        request = kind.model_validate(wanted)
    except ValidationError as error:
        raise _invalid(error) from None
    if request.model != model:
        raise ApiError(
            404,
            f"model: {shown(request.model)} is not served here; use {model!r}",
            code="model_not_found",
            param="model",
        )
    if isinstance(request, ChatRequest) and request.top_logprobs and not request.logprobs:
        message = f"top_logprobs: {request.top_logprobs} needs logprobs; set that to true, or leave this out"
        raise ApiError(400, message, code="invalid_value", param="top_logprobs")
    if request.best_of is None and (request.chaperone is None or request.chaperone.num_beams is None):
        request = request.model_copy(update={"best_of": num_beams if num_beams > 1 else None})
    if request.beams and request.stream and request.choices > 1:
        message = f"n: {request.choices} texts of one search cannot be streamed; leave out stream, or n"
        raise ApiError(400, message, code="invalid_value", param="n")
    if isinstance(request.stop, list) and len(request.stop) > MOST_STOPS:
        raise ApiError(
            400, f"stop: {len(request.stop)} texts; give at most {MOST_STOPS}", code="invalid_value", param="stop"
        )
    return request


def said(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as chat templates take them: the content as one text, and a developer's as the system's.

    Raises ApiError for parts that are no text, and for calls of tools.
    """
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _refused(name: str, value: object, kind: type[_Request]) -> ApiError:
    """Return the error of a parameter that requests of this kind do not take: what to do instead."""
    instead = _INSTEAD.get(name) or instead_of(name, API_NAMES)
    if name in _UNSUPPORTED:
        code, problem = "unsupported_parameter", f"{shown(value)} is not supported here; {instead or 'leave it out'}"
    elif name in ChaperoneOptions.model_fields:
        code, problem = "unknown_parameter", f'put it into `chaperone`, as in {{"chaperone": {{"{name}": ...}}}}'
    elif instead is not None:
        code, problem = "unsupported_parameter", instead
    else:
        code, problem = "unknown_parameter", f"unknown parameter{did_you_mean(name, kind.model_fields)}; leave it out"
    return ApiError(400, f"{cut(name)}: {problem}", code=code, param=cut(name))


def _message(given: Mapping[str, Any], field: str) -> dict[str, Any]:
    plain = {name: value for name, value in given.items() if value is not None}
    for name in ("tool_calls", "function_call", "audio"):
        if plain.get(name):
            raise ApiError(
                400,
                f"{field}.{name}: it is not supported here; leave it out",
                code="unsupported_parameter",
                param=field,
            )
        plain.pop(name, None)
    for name in ("refusal", "annotations"):  # of an answer that is sent back
        plain.pop(name, None)
    if plain.get("role") in ("tool", "function"):
        message = f"{field}.role: {plain['role']!r} is not supported here; use user, assistant or system"
        raise ApiError(400, message, code="unsupported_value", param=field)
    if plain.get("role") == "developer":
        plain["role"] = "system"
    if isinstance(plain.get("content"), list):
        plain["content"] = "\n".join(
            _part(part, f"{field}.content[{index}]") for index, part in enumerate(plain["content"])
        )
    return plain


def _part(part: object, field: str) -> str:
    if not isinstance(part, Mapping):
        raise ApiError(400, f"{field}: {shown(part)} is no part of a message", code="invalid_value", param=field)
    if part.get("type") != "text":
        raise ApiError(
            400,
            f"{field}.type: {shown(part.get('type'))} is not supported here; send text",
            code="unsupported_value",
            param=field,
        )
    if not isinstance(part.get("text"), str):
        raise ApiError(400, f"{field}.text: {shown(part.get('text'))} is no text", code="invalid_value", param=field)
    return str(part["text"])


def _asks(name: str, value: object) -> bool:
    """Return whether a parameter that is not supported asks for something."""
    return name not in _UNSUPPORTED or not (value is None or value in _UNSUPPORTED[name])


def _mode(options: ChaperoneOptions) -> Mode | None:
    mode = None if options.mode is None else Mode(options.mode)
    if options.locality is None:
        return mode
    if mode not in (None, LOCALITIES[options.locality]):
        raise ApiError(
            400,
            f"chaperone.locality: {options.locality!r} is {LOCALITIES[options.locality]}, and mode is {mode}; give "
            "one of both",
            code="invalid_value",
            param="chaperone.locality",
        )
    return LOCALITIES[options.locality]


def _invalid(error: ValidationError) -> ApiError:
    """Return the first problem that pydantic found."""
    first = error.errors(include_url=False)[0]
    path = cut(".".join(str(part) for part in first["loc"] if part not in _KINDS))
    if first["type"] == "extra_forbidden" and first["loc"][0] == "chaperone":
        name = str(first["loc"][-1])
        problem = (
            "it belongs outside of `chaperone`"
            if name in ChatRequest.model_fields
            else f"unknown parameter{did_you_mean(name, ChaperoneOptions.model_fields)}; leave it out"
        )
        return ApiError(400, f"{path}: {problem}", code="unknown_parameter", param=path)
    if first["type"] == "missing":
        return ApiError(400, f"{path}: {first['msg']}", code="missing_required_parameter", param=path)
    return ApiError(400, f"{path}: {shown(first['input'])}: {first['msg']}", code="invalid_value", param=path)
