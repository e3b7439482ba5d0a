"""The parameters of a request: parsed, checked, and completed with the configured defaults."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, TypeVar, cast

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import ConfigError, InvalidRequest, PromptTooLong
from chaperone_common.frames import Capabilities
from chaperone_common.partial import PartialBeams, PartialGeneration
from chaperone_common.settings import FrozenModel
from chaperone_common.suggestion import counted, shown
from chaperone_common.types import BeamParams, GenerationParams, Mode, Promises, PromptInput, SamplingParams
from edge_client.config import EdgeConfig, GateSettings, GenerationSettings
from edge_client.generation import GenerationRequest, Prompt
from edge_client.refused_names import refuse_others

PROMISES = ("catch", "max_deviation")
GATED_ONLY = (*PROMISES, "max_cloud_share")  # parameters of `gated` alone
_SEED_BITS = 32  # of a drawn seed: every JSON reader keeps such a number whole
_SETTLED = (  # by a resumed text
    *("temperature", "do_sample", "top_p", "top_k", "min_p", "seed", "stop", "stop_strings", "committed_token_ids"),
    *("num_beams", "best_of", "beam_threshold", "length_penalty", "early_stopping", "one_cache"),
)
OF_METHODS = {  # arguments that are no parameters, and the methods that take them
    "timeout": "only generate, stream and stream_text take it, as an argument of the method",
    "cancellation": "only generate, stream and stream_text take it, as an argument of the method",
    "explain": "only stream takes it, as an argument of the method",
    "streamer": "only generate takes it, as an argument of the method",
}

SettingsT = TypeVar("SettingsT", bound=FrozenModel)


class RequestParameters(TypedDict, total=False):
    """The parameters of a generation, named as by Hugging Face and OpenAI.

    A parameter that is absent or None has its configured value.
    """

    # The mode, and the promises and the ceiling of `gated`.
    mode: Mode | str | None
    catch: float | None  # share of the cloud's corrections that must be applied, in [0, 1]
    max_deviation: float | None  # share of tokens that may differ from the cloud's choice, in [0, 1]
    max_cloud_share: float | None  # share of the text's tokens that the cloud may choose, in (0, 1]; 1 switches it off

    # Sampling.
    temperature: float | None  # 0 is greedy
    top_p: float | None  # in (0, 1]; 1 switches it off
    top_k: int | None  # 0 switches it off
    min_p: float | None  # in [0, 1]; 0 switches it off
    seed: int | None  # drawn if `temperature` is above 0 and none is configured; `stats.seed` reports it

    # The end of the text.
    max_new_tokens: int | None
    stop: str | Sequence[str] | None  # the text ends before any of these

    # Hugging Face's names.
    do_sample: bool | None  # False: `temperature` 0. True: a temperature above 0, which is 1 unless one is given
    stop_strings: str | Sequence[str] | None  # `stop`; Hugging Face's texts end after the first of these

    # Beams; see docs/beams.md. They need mode `exact` or `cloud`.
    num_beams: int | None  # texts that grow at once, 1 to 8; 1 is a single text
    num_return_sequences: int | None  # texts that are returned in `sequences`, the best first
    beam_width: int | str | None  # texts that the device drafts in each layer, or "dynamic"
    beam_threshold: float | None  # lets the number of beams fall; in (0, 1]
    length_penalty: float | None  # exponent of the length in a score
    early_stopping: bool | None  # end as soon as `num_beams` texts are whole
    one_cache: bool | None  # after each round go on from the best text alone
    best_of: int | None  # another name of `num_beams`

    # What to report; see docs/using.md.
    logprobs: bool | None  # the log-probability of each token
    top_logprobs: int | None  # and those of this number of the likeliest tokens, 0 to 20

    # The prompt; see `EdgeClient.prepare`.
    raw: bool | None
    parse_special: bool | None
    tools: Sequence[Mapping[str, Any]] | None

    # The tokens that an earlier generation has already written after the prompt.
    committed_token_ids: Sequence[int] | None

    # For measurements: draft nothing until both ends hold the prompt's KV cache.
    warm_start: bool | None


def parse_request(
    prompt: Prompt | PartialGeneration,
    parameters: RequestParameters,
    config: EdgeConfig,
    prepare: Callable[..., PromptInput],
) -> GenerationRequest:
    """Check parameters and fill in the configured defaults.

    `prepare` turns a prompt into tokens, as `EdgeClient.prepare` does. Raises InvalidRequest, naming the field.
    """
    check_names(parameters)
    model_digest, cloud_tokens, partial = "", 0, None
    if isinstance(prompt, PartialGeneration):
        parameters = resumed(prompt, parameters)
        model_digest, cloud_tokens, partial = prompt.model_digest, prompt.cloud_tokens, prompt
        prompt = PromptInput(prompt.prompt_token_ids)
    parameters = plain_names(parameters)
    if parameters.pop("do_sample", False) and not config.generation.temperature:
        parameters["temperature"] = 1.0  # as in Hugging Face
    mode = parse_mode(parameters.get("mode"), config.mode)
    check_promised(parameters, mode)
    params = parse_params(parameters, config.generation)
    begun = _begun(partial, params, parameters, mode)
    return GenerationRequest(
        prepare(
            prompt,
            raw=_parse_flag("raw", parameters.get("raw")),
            parse_special=_parse_flag("parse_special", parameters.get("parse_special")),
            tools=parameters.get("tools"),
        ),
        params,
        mode,
        parse_promises(parameters, config.gate),
        _parse_committed_ids(parameters.get("committed_token_ids")),
        _parse_flag("warm_start", parameters.get("warm_start")),
        model_digest,
        parse_max_cloud_share(parameters, config.gate),
        cloud_tokens,
        partial.promises_hold if partial is not None else None if mode.writes_alone else True,
        begun,
    )


def parse_params(given: Mapping[str, Any], defaults: GenerationSettings) -> GenerationParams:
    """Check the parameters of sampling and length, and fill in defaults; raises InvalidRequest."""
    if given.get("logprobs") is False and given.get("top_logprobs") is None:
        given = {**given, "top_logprobs": 0}  # switched off, whatever is configured
    settings = _overridden(defaults, given)
    seed = settings.seed
    if seed is None:
        seed = secrets.randbits(_SEED_BITS) if settings.temperature > 0 else 0
    sampling = SamplingParams(settings.temperature, settings.top_p, settings.top_k, settings.min_p, seed)
    return GenerationParams(
        sampling,
        settings.max_new_tokens,
        settings.stop,
        settings.logprobs,
        settings.top_logprobs,
        _parse_beams(given, settings),
    )


def _parse_beams(given: Mapping[str, Any], settings: GenerationSettings) -> BeamParams | None:
    """Return the parameters of beams; None for a single text, which takes none of them."""
    if settings.num_beams > 1:
        values = {field.name: getattr(settings, field.name) for field in fields(BeamParams)}
        return BeamParams(**values | {"beam_width": None if settings.beam_width == "dynamic" else settings.beam_width})
    for name in (field.name for field in fields(BeamParams) if field.name != "num_beams"):
        if given.get(name) not in (None, False, getattr(GenerationSettings(), name)):
            raise InvalidRequest(f"{name}: num_beams is 1, and only beams have it; ask for more beams, or leave it out")
    return None


def _begun(
    partial: PartialGeneration | None, params: GenerationParams, given: RequestParameters, mode: Mode
) -> PartialBeams | None:
    """Return the beams to go on with; None for a single text, and for new ones. Raises InvalidRequest."""
    begun = partial.beams if partial is not None else None
    if params.beams is None:
        if begun is not None:
            raise InvalidRequest("num_beams: the text that is resumed has beams; leave it out, or give as many")
        return None
    if mode not in (Mode.EXACT, Mode.CLOUD):
        raise InvalidRequest(
            f"num_beams: {params.beams.num_beams}, and mode is {mode}; the cloud verifies all beams, so ask for "
            "exact or cloud, or for one text"
        )
    if given.get("committed_token_ids") and begun is None:
        raise InvalidRequest("committed_token_ids: tokens alone say nothing of the beams; resume from error.partial")
    return begun


def parse_promises(given: Mapping[str, Any], defaults: GateSettings) -> Promises:
    """Check the promises of `gated`, and fill in defaults; raises InvalidRequest."""
    settings = _overridden(defaults, {name: given.get(name) for name in PROMISES})
    return Promises(settings.catch, settings.max_deviation)


def parse_max_cloud_share(given: Mapping[str, Any], defaults: GateSettings) -> float | None:
    """Check the ceiling of the cloud's share, and fill in the default; raises InvalidRequest."""
    return _overridden(defaults, {"max_cloud_share": given.get("max_cloud_share")}).max_cloud_share


def parse_mode(value: Mode | str | None, default: Mode) -> Mode:
    """Return a mode by its name; raises InvalidRequest, which lists the names."""
    try:
        return default if value is None else Mode(value)
    except ValueError:
        raise InvalidRequest(f"mode: {shown(value)} is none of {', '.join(Mode)}") from None


def check_names(
    parameters: Mapping[str, Any],
    takes: Collection[str] = tuple(RequestParameters.__annotations__),
    elsewhere: Mapping[str, str] = OF_METHODS,
) -> None:
    """Raise InvalidRequest for a name that is no parameter; `takes` and `elsewhere` are as for `refuse_others`."""
    if type(number := parameters.get("logprobs")) is int:
        raise InvalidRequest(f"logprobs: {shown(number)} is a number; use logprobs=True, top_logprobs={shown(number)}")
    refuse_others(parameters, takes, elsewhere)


def plain_names(given: RequestParameters) -> RequestParameters:
    """Return the same parameters with our names in place of Hugging Face's.

    `do_sample=True` stays if there is no temperature, since a configured one may be above 0. Raises InvalidRequest for
    two names that contradict each other.
    """
    plain: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if (stop := plain.pop("stop_strings", None)) is not None:
        if "stop" in plain:
            raise InvalidRequest("stop_strings: it is another name of stop, which is given, too; give one of them")
        plain["stop"] = stop
    if (best_of := plain.pop("best_of", None)) is not None:
        if plain.get("num_beams", best_of) != best_of:
            raise InvalidRequest("best_of: it is another name of num_beams, which is given, too; give one of them")
        plain["num_beams"] = best_of
    do_sample, temperature = plain.pop("do_sample", None), plain.get("temperature")
    if do_sample is None:
        return cast(RequestParameters, plain)
    if _parse_flag("do_sample", do_sample):
        if temperature == 0:
            raise InvalidRequest("do_sample: True, but temperature is 0, which is greedy; give a temperature above 0")
        return cast(RequestParameters, plain if temperature is not None else {**plain, "do_sample": True})
    if temperature not in (None, 0):
        raise InvalidRequest(f"do_sample: False is greedy, but temperature is {shown(temperature)}; give one of them")
    return cast(RequestParameters, {**plain, "temperature": 0.0})


def merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> RequestParameters:
    """Return the parameters of one text in place of those of a conversation or command; None leaves these.

    Raises InvalidRequest for two names in `given` that contradict each other.
    """
    kept, plain = dict(defaults), plain_names(cast(RequestParameters, given))
    if "temperature" in plain or "do_sample" in plain:
        kept.pop("do_sample", None)
    if "do_sample" in plain and kept.get("temperature") == 0:
        kept.pop("temperature")
    if plain.get("logprobs") is False:
        kept.pop("top_logprobs", None)
    return cast(RequestParameters, {**kept, **plain})


def check_promised(given: Mapping[str, Any], mode: Mode) -> None:
    """Raise InvalidRequest for a promise that the mode does not make, or a ceiling that it does not keep."""
    for name in GATED_ONLY:
        if given.get(name) is not None and mode is not Mode.GATED:
            kept = "promises" if name in PROMISES else "this ceiling"
            raise InvalidRequest(f"{name}: mode is {mode}, and only gated keeps {kept}; ask for gated, or leave it out")


def resumed(partial: PartialGeneration, given: RequestParameters) -> RequestParameters:
    """Return the parameters that resume a failed generation.

    Raises InvalidRequest for a parameter that its text has settled, such as the seed.
    """
    for name in _SETTLED:
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
        logprobs=params.logprobs,
        top_logprobs=params.top_logprobs,
    )
    if params.beams is not None:
        beams = {field.name: getattr(params.beams, field.name) for field in fields(params.beams)}
        kept = cast(RequestParameters, {**kept, **beams, "beam_width": params.beams.beam_width or "dynamic"})
    else:
        kept["num_beams"] = 1  # whatever is configured
    kept = merged(kept, given)
    if parse_mode(kept["mode"], partial.mode) is Mode.GATED and partial.mode is Mode.GATED:
        kept.setdefault("catch", partial.promises.catch)
        kept.setdefault("max_deviation", partial.promises.max_deviation)
        kept.setdefault("max_cloud_share", partial.max_cloud_share)
    return kept


def check_reported(params: GenerationParams, cloud: Capabilities) -> None:
    """Raise InvalidRequest if the cloud cannot report the log-probabilities that are wanted."""
    wanted, most = params.reported_logprobs, cloud.max_top_logprobs
    if wanted is not None and most is None:
        raise InvalidRequest(
            f"logprobs: the cloud that serves {cloud.model} reports none; update it, or leave this out"
        )
    if wanted is not None and most is not None and wanted > most:
        raise InvalidRequest(f"top_logprobs: {wanted}, and the cloud reports at most {most}; ask for fewer")


def check_begun_beams(begun: PartialBeams, max_new_tokens: int) -> None:
    """Raise InvalidRequest for beams to go on with that are full already."""
    length = max((len(beam.token_ids) for beam in begun.running), default=0)
    if length >= max_new_tokens:
        raise InvalidRequest(
            f"max_new_tokens: {max_new_tokens} counts the whole text, and the texts to go on with have "
            f"{counted(length, 'token')}; give more"
        )


def check_max_beams(params: BeamParams, cloud: Capabilities) -> None:
    """Raise InvalidRequest if the cloud does not serve this many beams."""
    if params.num_beams > cloud.max_beams:
        remedy = "ask for fewer" if cloud.max_beams else "update it, or ask for one text"
        raise InvalidRequest(
            f"num_beams: {params.num_beams}, and the cloud that serves {cloud.model} takes {cloud.max_beams}; {remedy}"
        )
    if params.num_beams > cloud.max_span_tokens:
        raise InvalidRequest(
            f"num_beams: {params.num_beams}, and the cloud that serves {cloud.model} reads {cloud.max_span_tokens} at "
            "once (its limits.max_span_tokens); ask for fewer"
        )


def text_limit(request: GenerationRequest, manifest: ModelManifest, context_tokens: int) -> int:
    """Return the length at which the text is full, prompt included; raises PromptTooLong or InvalidRequest."""
    _check_ids("prompt", request.prompt.token_ids, manifest.vocabulary_size)
    _check_ids("committed_token_ids", request.committed_token_ids, manifest.vocabulary_size)
    committed_ids = request.committed_token_ids
    length = len(request.prompt.token_ids) + len(committed_ids)
    if length >= context_tokens:
        raise PromptTooLong(f"prompt: {length} tokens leave no room in a context of {context_tokens}; shorten it")
    ends = [index for index, token_id in enumerate(committed_ids) if token_id in manifest.eos_token_ids]
    if ends:
        raise InvalidRequest(
            f"committed_token_ids[{ends[0]}]: {committed_ids[ends[0]]} is end-of-text; nothing is left to write after "
            "it"
        )
    limit = min(len(request.prompt.token_ids) + request.params.max_new_tokens, context_tokens)
    if length >= limit:
        raise InvalidRequest(
            f"max_new_tokens: {request.params.max_new_tokens} counts the whole text, of which "
            f"{counted(len(committed_ids), 'token')} {'is' if len(committed_ids) == 1 else 'are'} final; give more"
        )
    return limit


def _overridden(defaults: SettingsT, given: Mapping[str, Any]) -> SettingsT:
    """Return the settings with the given values in place of their own, checked; raises InvalidRequest."""
    values = {name: getattr(defaults, name) for name in type(defaults).model_fields}
    values |= {name: given[name] for name in values if given.get(name) is not None}
    try:
        return type(defaults)(**values)
    except ConfigError as error:
        raise InvalidRequest(error.message.partition("\n")[0]) from None


def _parse_flag(name: str, value: object) -> bool:
    """Return a switch, which is off if it is absent; raises InvalidRequest."""
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name}: {shown(value)} is neither true nor false")
    return bool(value)


def _parse_committed_ids(value: object) -> tuple[int, ...]:
    """Return a list of token ids as a tuple; `text_limit` checks the ids. Raises InvalidRequest."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidRequest(f"committed_token_ids: {shown(value)} is not a list of token ids")
    return tuple(value)


def _check_ids(name: str, token_ids: Sequence[int], vocabulary_size: int) -> None:
    for token_id in token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocabulary_size:
            raise InvalidRequest(f"{name}: {shown(token_id)} is not a token id of a vocabulary of {vocabulary_size}")
