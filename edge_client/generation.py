"""What is asked for, and what comes of it."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import ChaperoneError, InvalidRequest, PromptTooLong
from chaperone_common.partial import PartialGeneration
from chaperone_common.session import Audited, Committed, Drafted, Event, Failed, Finished, Retracted, Unverified
from chaperone_common.stats import GenerationStats
from chaperone_common.types import (
    FinishReason,
    GenerationParams,
    Mode,
    Origin,
    Promises,
    PromptInput,
    SamplingParams,
)
from edge_client.config import GateSettings, GenerationSettings

Prompt = str | Sequence[Mapping[str, Any]] | PromptInput

PROMISES = ("catch", "max_deviation")  # of gated
_SEED_BITS = 32  # of a seed that is drawn; every JSON reader keeps such a number whole
_RULES = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "committed_token_ids")  # that a resumed text keeps


class RequestParameters(TypedDict, total=False):
    """What a generation may be asked for, by the names of Hugging Face and OpenAI; what is absent is as configured.

    `catch` and `max_deviation` are promises of `gated`. `seed` keys the noise; where `temperature` is above 0 and no
    seed is given or configured, one is drawn, and `stats.seed` tells it. `raw` reads a prompt that is a string without
    the chat template; `parse_special` and `tools` are those of `EdgeClient.prepare`. `committed_token_ids` go on with a
    text that was begun earlier. `warm_start` drafts nothing until both ends hold the prompt's KV, for measurements.
    """

    mode: Mode | str | None
    catch: float | None
    max_deviation: float | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    max_new_tokens: int | None
    stop: str | Sequence[str] | None
    raw: bool | None
    parse_special: bool | None
    tools: Sequence[Mapping[str, Any]] | None
    committed_token_ids: Sequence[int] | None
    warm_start: bool | None


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    origins: tuple[Origin, ...]
    finish_reason: FinishReason
    stats: GenerationStats
    unverified: ChaperoneError | None = None  # why the device went on alone, if it did

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as `chaperone generate` writes them; `unverified` only if the cloud was lost."""
        fields = {
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "text": self.text,
            "origins": [str(origin) for origin in self.origins],
            "finish_reason": str(self.finish_reason),
            "stats": self.stats.to_json(),
        }
        if self.unverified is not None:
            fields["unverified"] = error_json(self.unverified)
        return fields


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt in tokens, and everything that decides what is written after it."""

    prompt: PromptInput
    params: GenerationParams = GenerationParams()
    mode: Mode = Mode.EXACT
    promises: Promises = Promises()  # of gated
    committed_token_ids: tuple[int, ...] = ()  # of a failed generation that is resumed
    warm_start: bool = False  # for measurements: draft nothing until both ends hold the prompt's KV
    model_digest: str = ""  # of the large model that began the text that is resumed; "" takes any


@dataclass
class Collector:
    """Puts events together again; `result` raises what a Failed event carries."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    text: str = ""
    drafted: bool = False  # something provisional was shown
    unverified: ChaperoneError | None = None
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
            case Unverified():
                self.unverified = event.error
            case Drafted():
                self.drafted = True
            case Retracted() | Audited():
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
                    self.unverified,
                )
            case Failed(error):
                raise error
            case None:
                raise RuntimeError("the generation has not ended")

    def partial(self) -> PartialGeneration:
        """What is final, to be resumed from once Failed came."""
        request = self.request
        begun_with = self.ending.stats.model_digest if self.ending is not None else ""
        return PartialGeneration(
            request.prompt.token_ids,
            (*request.committed_token_ids, *self.token_ids),
            self.text,
            tuple(self.origins),
            request.params,
            request.mode,
            request.promises,
            begun_with or request.model_digest,
        )


def error_json(error: ChaperoneError, *, where: str = "") -> dict[str, str]:
    """Return an error as `chaperone generate` writes it; `where` stands before the message."""
    return {"type": type(error).__name__, "message": f"{where}{error.message}"}


def unverified_warning(error: ChaperoneError) -> str:
    """Return what to say of a text that the device wrote on alone."""
    return f"the cloud is lost, and tokens from here on are the device's own, which nobody verifies: {error.message}"


def text_limit(request: GenerationRequest, manifest: ModelManifest, context_tokens: int) -> int:
    """The length at which the text is full, prompt included; raises PromptTooLong or InvalidRequest."""
    _check_ids("prompt", request.prompt.token_ids, manifest.vocabulary_size)
    _check_ids("committed_token_ids", request.committed_token_ids, manifest.vocabulary_size)
    committed = request.committed_token_ids
    length = len(request.prompt.token_ids) + len(committed)
    if length >= context_tokens:
        raise PromptTooLong(f"prompt: {length} tokens leave no room in a context of {context_tokens}; shorten it")
    ends = [index for index, token_id in enumerate(committed) if token_id in manifest.eos_token_ids]
    if ends:
        raise InvalidRequest(
            f"committed_token_ids[{ends[0]}]: {committed[ends[0]]} is end-of-text; nothing is left to write after it"
        )
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
        seed=_integer("seed", given.get("seed"), defaults.seed or 0),
    )
    if sampling.temperature > 0 and given.get("seed") is None and defaults.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(_SEED_BITS))
    max_new_tokens = _integer("max_new_tokens", given.get("max_new_tokens"), defaults.max_new_tokens)
    return GenerationParams(sampling, max_new_tokens, _stop(given.get("stop"), defaults.stop))


def promises(given: Mapping[str, Any], defaults: GateSettings) -> Promises:
    """Check what `gated` is to promise, and fill in defaults; raises InvalidRequest."""
    return Promises(
        _number("catch", given.get("catch"), defaults.catch),
        _number("max_deviation", given.get("max_deviation"), defaults.max_deviation),
    )


def check_promised(given: Mapping[str, Any], mode: Mode) -> None:
    """Refuse promises that the mode does not make; raises InvalidRequest."""
    for name in PROMISES:
        if given.get(name) is not None and mode is not Mode.GATED:
            raise InvalidRequest(
                f"{name}: mode is {mode}, and only gated keeps promises; ask for gated, or leave it out"
            )


def check_names(parameters: Mapping[str, Any]) -> None:
    """Refuse names that are no parameter; raises InvalidRequest with the nearest one."""
    known = RequestParameters.__annotations__
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InvalidRequest(f"{name}: unknown parameter ({hint})")


def resumed(partial: PartialGeneration, given: RequestParameters) -> RequestParameters:
    """Parameters that go on with a failed generation; raises InvalidRequest for those that its text has settled."""
    for name in _RULES:
        if given.get(name) is not None:
            raise InvalidRequest(f"{name}: a resumed text keeps what it was begun with; leave it out")
    sampling, params = partial.params.sampling, partial.params
    kept = RequestParameters(
        mode=partial.mode,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        max_new_tokens=params.max_new_tokens,
        stop=params.stop,
        committed_token_ids=partial.token_ids,
    )
    kept.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    if mode_of(kept["mode"], partial.mode) is Mode.GATED and partial.mode is Mode.GATED:
        kept.setdefault("catch", partial.promises.catch)
        kept.setdefault("max_deviation", partial.promises.max_deviation)
    return kept


def flag(name: str, value: object) -> bool:
    """Check a switch, which is off where it is absent; raises InvalidRequest."""
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name}: {value!r} is neither True nor False")
    return bool(value)


def committed(value: object) -> tuple[int, ...]:
    """Check that a resumed text is a list; its ids are checked with the vocabulary. Raises InvalidRequest."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidRequest(f"committed_token_ids: {value!r} is not a list of token ids")
    return tuple(value)


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
