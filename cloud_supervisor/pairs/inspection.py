"""The check of a pair: vocabularies, architectures, sizes, agreement, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chaperone_common.artefacts.folders import Role
from chaperone_common.artefacts.registry import Pair
from chaperone_common.command.sizes import shown_bytes
from chaperone_common.errors import ModelError
from chaperone_common.planning.costs import Costs
from cloud_supervisor.export.build import adapter_file, refuse_missing_packages, refuse_named_architectures
from cloud_supervisor.export.patience import Say
from cloud_supervisor.pairs.free_memory import free_bytes
from cloud_supervisor.pairs.models import NotHere, PairModel, temporary_models
from cloud_supervisor.pairs.report import ModelReport, Report, Times
from cloud_supervisor.pairs.verdict import Agreement, Verdict, impossible, judge

if TYPE_CHECKING:
    from cloud_supervisor.export.conversion import LoadedModel

DTYPES = ("float32", "bfloat16", "int8")
# A token takes the time to read all weights once. This rate is that of the reference machine's processor, on which the
# default pair's 395 MB took 24.3 ms (benchmarks/results/device.json).
BYTES_PER_MS = 395e6 / 24.3
_ESTIMATED = "estimated from the size, for a processor that reads 16 GB/s"
_PRIOR = Costs()
_OPEN = Verdict("open", None, None, "")


@dataclass(frozen=True)
class Measuring:
    """The bounds of the measurement of the agreement."""

    prompts: Sequence[str] = ()  # empty: the sample prompts
    max_new_tokens: int = 32
    seconds: float = 300.0
    memory_bytes: int | None = None  # for both models; None: what is free


@dataclass(frozen=True)
class GivenTimes:
    """Times that the user knows, in milliseconds; None is estimated."""

    draft_ms: float | None = None
    cloud_ms: float | None = None
    rtt_ms: float | None = None


def inspect(
    name: str | None, pair: Pair, *, measuring: Measuring | None, given: GivenTimes | None = None, say: Say
) -> Report:
    """Return the report on a pair. `measuring` None skips the agreement.

    A pair that cannot work is a report, too. Raises ModelError if a source cannot be found, or if packages are missing.
    """
    refuse_missing_packages()
    with temporary_models(pair) as models:
        edge, cloud = (ModelReport(model.name, model.source) for model in (models["edge"], models["cloud"]))
        edge = replace(edge, adapter=pair.edge.adapter)
        report = Report(name, edge, cloud, _OPEN)
        try:
            refuse_named_architectures(pair)  # before a hub is asked for anything
        except ModelError as error:
            return replace(report, verdict=impossible(error.message))
        return _inspected(report, models, pair, measuring, given or GivenTimes(), say)


def _inspected(
    report: Report,
    models: Mapping[Role, PairModel],
    pair: Pair,
    measuring: Measuring | None,
    given: GivenTimes,
    say: Say,
) -> Report:
    """Ask each question only after the cheaper ones have found no reason against the pair."""
    try:
        edge, cloud = _configured(report.edge, models["edge"], say), _configured(report.cloud, models["cloud"], say)
        report = replace(report, edge=edge, cloud=cloud)
        if problems := [model.problem for model in (edge, cloud) if model.problem is not None]:
            return replace(report, verdict=impossible("; ".join(problems)))
        edge, cloud = _with_vocabulary(edge, models["edge"], say), _with_vocabulary(cloud, models["cloud"], say)
    except NotHere as error:
        return replace(report, verdict=replace(_OPEN, reason=error.message))
    same = edge.tokenizer_digest == cloud.tokenizer_digest
    report = replace(report, edge=edge, cloud=cloud, same_vocabulary=same)
    if not same:
        reason = "the models read different vocabularies, so token ids mean different things; take two of one family"
        return replace(report, verdict=impossible(reason))
    stored, sizes = pair.cloud.recipe.dtype, models["cloud"].sizes
    times = _times(models, pair, given)
    agreement, problem = _agreement(models, pair, measuring, say)
    return replace(
        report,
        device_bytes=models["edge"].sizes.device_bytes(pair.edge.recipe),
        cloud_bytes={dtype: sizes.cloud_bytes(dtype, stored) for dtype in DTYPES},
        kv_bytes_per_token={dtype: sizes.kv_bytes(dtype) for dtype in DTYPES},
        agreement=agreement,
        agreement_problem=problem,
        times=times,
        verdict=judge(_costs(times), agreement),
    )


def _configured(report: ModelReport, model: PairModel, say: Say) -> ModelReport:
    """Add architecture and size, or the reason why the model cannot take its role."""
    say(f"reading the configuration of {model.name}{_slowly(model)}")
    report = replace(report, architecture=model.architecture)
    try:
        model.refuse_unsupported()
    except ModelError as error:
        return replace(report, problem=error.message)
    return replace(report, parameters=model.sizes.parameters)


def _with_vocabulary(report: ModelReport, model: PairModel, say: Say) -> ModelReport:
    say(f"reading the vocabulary of {model.name}{_slowly(model)}")
    vocabulary = model.vocabulary
    return replace(report, vocabulary_size=vocabulary.size, tokenizer_digest=vocabulary.digest)


def _agreement(
    models: Mapping[Role, PairModel], pair: Pair, measuring: Measuring | None, say: Say
) -> tuple[Agreement | None, str | None]:
    """Return the agreement, or the reason why it was not measured."""
    if measuring is None:
        return None, "--skip-agreement"
    dtype = pair.cloud.recipe.dtype
    needed = models["edge"].sizes.cloud_bytes("float32", dtype) + models["cloud"].sizes.cloud_bytes(dtype, dtype)
    free = free_bytes() if measuring.memory_bytes is None else measuring.memory_bytes
    if needed > free:
        return None, f"both models need {shown_bytes(needed)} of memory, and {shown_bytes(free)} are free"
    try:
        edge, cloud = _loaded(models["edge"], "float32", dtype, say), _loaded(models["cloud"], dtype, dtype, say)
        _merge_adapter(edge, pair, say)
    except NotHere as error:
        return None, error.message
    from cloud_supervisor.export.agreement import SAMPLE_PROMPTS, count_agreeing

    prompts = measuring.prompts or SAMPLE_PROMPTS
    say(
        f"measuring the agreement: {len(prompts)} prompts, up to {measuring.max_new_tokens} tokens each; "
        f"no prompt is begun after {measuring.seconds:.0f} s"
    )
    agreed, tokens = count_agreeing(
        edge,
        cloud,
        models["edge"].vocabulary.size,
        prompts,
        max_new_tokens=measuring.max_new_tokens,
        seconds=measuring.seconds,
    )
    return Agreement(agreed, tokens), None


def _loaded(model: PairModel, dtype: str, stored: str, say: Say) -> LoadedModel:
    """Load a model, after a line that says so with the sizes; raises NotHere or ModelError."""
    source = f" from {shown_bytes(model.weight_bytes)} of files" if model.weight_bytes else ""
    needed = shown_bytes(model.sizes.cloud_bytes(dtype, stored))
    say(f"loading {model.name}{source} into {needed} of memory, in {dtype}{_slowly(model)}")
    return model.load(dtype)


def _merge_adapter(edge: LoadedModel, pair: Pair, say: Say) -> None:
    """Merge the adapter of the pair, if it has one. Raises ModelError if it does not fit."""
    if (file := adapter_file(pair.edge)) is None:
        return
    from cloud_supervisor.export.adapter import Adapter

    say(f"merging the adapter {pair.edge.adapter}")
    Adapter.load(file).merge_into(edge.model, pair.edge.model)


def _slowly(model: PairModel) -> str:
    """Return a warning for the line before a step that decodes a GGUF file."""
    return "; its GGUF file is decoded, which can take a minute" if model.is_gguf else ""


def _times(models: Mapping[Role, PairModel], pair: Pair, given: GivenTimes) -> Times:
    dtype = pair.cloud.recipe.dtype
    device_bytes = models["edge"].sizes.device_bytes(pair.edge.recipe)
    cloud_bytes = models["cloud"].sizes.cloud_bytes(dtype, dtype)
    return Times(
        draft_ms=given.draft_ms or device_bytes / BYTES_PER_MS,
        draft_source="given" if given.draft_ms else _ESTIMATED,
        cloud_ms=given.cloud_ms or cloud_bytes / BYTES_PER_MS,
        cloud_source="given" if given.cloud_ms else f"{_ESTIMATED}, in {dtype}",
        rtt_ms=given.rtt_ms if given.rtt_ms is not None else _PRIOR.rtt_ms,
        rtt_source="given" if given.rtt_ms is not None else "the planner's first assumption",
    )


def _costs(times: Times) -> Costs:
    """Return the planner's costs. A further token of a span costs the share of the planner's first assumptions."""
    token_ms = times.cloud_ms * _PRIOR.read_token_ms / (_PRIOR.read_base_ms + _PRIOR.read_token_ms)
    return Costs(
        draft_ms=times.draft_ms,
        rtt_ms=times.rtt_ms,
        read_base_ms=times.cloud_ms - token_ms,
        read_token_ms=token_ms,
        stream_ms=times.cloud_ms,
    )
