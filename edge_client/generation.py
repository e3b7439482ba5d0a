"""What is asked for, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.config import ModelManifest
from common.errors import InvalidRequest, PromptTooLong
from common.gate import Promises
from common.session import Audited, Committed, Drafted, Event, Failed, Finished, Retracted
from common.stats import GenerationStats
from common.types import (
    FinishReason,
    GenerationParams,
    Mode,
    Origin,
    PromptInput,
    SamplingParams,
)
from edge_client.config import GateSettings, GenerationSettings

Prompt = str | Sequence[Mapping[str, Any]] | PromptInput


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    origins: tuple[Origin, ...]
    finish_reason: FinishReason
    stats: GenerationStats

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as `chaperone generate` writes them."""
        return {
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "text": self.text,
            "origins": [str(origin) for origin in self.origins],
            "finish_reason": str(self.finish_reason),
            "stats": self.stats.to_json(),
        }


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt in tokens, and everything that decides what is written after it."""

    prompt: PromptInput
    params: GenerationParams = GenerationParams()
    mode: Mode = Mode.EXACT
    promises: Promises = Promises()  # of gated
    committed_token_ids: tuple[int, ...] = ()  # of a failed generation that is resumed
    warm_start: bool = False  # for measurements: draft nothing until both ends hold the prompt's KV


@dataclass
class Collector:
    """Puts events together again; `result` raises what a Failed event carries."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    text: str = ""
    ending: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Committed():
                self.token_ids.append(event.token_id)
                self.origins.append(event.origin)
                self.text += event.text
            case Finished() | Failed():
                self.text += event.text
                self.ending = event
            case Drafted() | Retracted() | Audited():
                pass

    def result(self) -> Generation:
        """The generation, once Finished or Failed came."""
        match self.ending:
            case Finished() as finished:
                return Generation(
                    self.request.prompt.token_ids,
                    tuple(self.token_ids),
                    self.text,
                    tuple(self.origins),
                    finished.finish_reason,
                    finished.stats,
                )
            case Failed(error):
                raise error
            case None:
                raise RuntimeError("the generation has not ended")


def text_limit(request: GenerationRequest, manifest: ModelManifest, context_tokens: int) -> int:
    """The length at which the text is full, prompt included; raises PromptTooLong or InvalidRequest."""
    _check_ids("prompt", request.prompt.token_ids, manifest.vocabulary_size)
    _check_ids("committed_token_ids", request.committed_token_ids, manifest.vocabulary_size)
    committed = request.committed_token_ids
    length = len(request.prompt.token_ids) + len(committed)
    if length >= context_tokens:
        raise PromptTooLong(f"prompt: {length} tokens leave no room in a context of {context_tokens}; shorten it")
    if committed and committed[-1] in manifest.eos_token_ids:
        raise InvalidRequest("committed_token_ids: the text ends with end-of-text; nothing is left to write")
    limit = min(len(request.prompt.token_ids) + request.params.max_new_tokens, context_tokens)
    if length >= limit:
        raise InvalidRequest(
            f"committed_token_ids: {len(committed)} tokens are as many as max_new_tokens, "
            f"{request.params.max_new_tokens}; nothing is left to write"
        )
    return limit


def _check_ids(name: str, token_ids: Sequence[int], vocabulary_size: int) -> None:
    for token_id in token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocabulary_size:
            raise InvalidRequest(f"{name}: {token_id!r} is not a token id of a vocabulary of {vocabulary_size}")


def generation_params(given: Mapping[str, Any], defaults: GenerationSettings) -> GenerationParams:
    """Check parameters and fill in defaults for those that are absent or None; raises InvalidRequest."""
    sampling = SamplingParams(
        temperature=_number("temperature", given.get("temperature"), defaults.temperature),
        top_p=_number("top_p", given.get("top_p"), defaults.top_p),
        top_k=_integer("top_k", given.get("top_k"), defaults.top_k),
        min_p=_number("min_p", given.get("min_p"), defaults.min_p),
        seed=_integer("seed", given.get("seed"), defaults.seed),
    )
    max_new_tokens = _integer("max_new_tokens", given.get("max_new_tokens"), defaults.max_new_tokens)
    return GenerationParams(sampling, max_new_tokens, _stop(given.get("stop"), defaults.stop))


def promises(given: Mapping[str, Any], defaults: GateSettings) -> Promises:
    """Check what `gated` is to promise, and fill in defaults; raises InvalidRequest."""
    return Promises(
        _number("catch", given.get("catch"), defaults.catch),
        _number("max_deviation", given.get("max_deviation"), defaults.max_deviation),
    )


def mode_of(value: Mode | str | None, default: Mode) -> Mode:
    """A mode by name; raises InvalidRequest that lists them."""
    try:
        return default if value is None else Mode(value)
    except ValueError:
        raise InvalidRequest(f"mode: {value!r} is none of {', '.join(Mode)}") from None


def _number(name: str, value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name}: {value!r} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequest(f"{name}: the number is too large") from None


def _integer(name: str, value: object, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name}: {value!r} is not a whole number")
    return value


def _stop(value: str | Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if value is None:
        return default
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) for text in strings):
        raise InvalidRequest(f"stop: {value!r} is neither a string nor a list of strings")
    return tuple(strings)
