"""Traces: the answers of both models of a pair on one text, so that any strategy can be replayed without the models.

A trace holds the cloud's text, and for each position the proposal of the device's model after the cloud's own prefix.
Where the two differ it also holds the device's continuation of its own token ("astray"), since a device drafts on until
the override arrives. A file is gzipped JSON, one object per line; the first one is the header.

Some strategies decide by values that not every file has. `python -m benchmarks extend` adds them: the `disagreement` of
each proposal along the text, cross-entropies under the cloud's model, and the varentropies and texts of tokens that a
calibrated gate reads.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chaperone_common.errors import ConfigError
from chaperone_common.types import Proposal, SamplingParams, Signal

FORMAT = 2
ASTRAY_TOKENS = 32  # proposals after a wrong token; the override arrives within fewer
_SIGNAL_DIGITS = 4  # significant ones
_DISAGREEMENT_DIGITS = 3  # the precision of its quadrature


@dataclass(frozen=True, slots=True)
class ExtendedProposal(Proposal):
    """A proposal with its `edge_client.model.uncertainty.disagreement`."""

    disagreement: float


@dataclass(frozen=True, slots=True)
class TracedDevice:
    """The device's model of a trace, for a calibrated gate: its identity, and the texts of its tokens."""

    pair: str
    model: str
    # See `ModelManifest.digest`.
    digest: str
    # The text of each token of the trace alone: of the cloud's tokens, the proposals and the second choices.
    token_texts: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Trace:
    """A generation with the answers of both models.

    `proposals[i]` is the device's, after the prompt and `token_ids[:i]`; the cloud chose `token_ids[i]` there.
    `ranks[i]` is the place of that token in the device's scores (coupled ones at temperatures above 0); 0 is the
    device's choice.

    `astray[i]` exists where the two differ: the proposals of the device's model after its own token at i, after that
    token and the next one, and so on. `cross_entropies[i]` exists at the same places: that of the device's token under
    the cloud's model, in nats. It is None if the file has none.

    `device` exists if all signals have their varentropy. `source` is the file.
    """

    id: str
    category: str  # "humaneval" or "general"
    sampling: SamplingParams
    prompt_tokens: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    ended: bool  # the last token is an end-of-text one; else the text was cut at `max_new_tokens`
    proposals: tuple[Proposal, ...]
    ranks: tuple[int, ...]
    astray: Mapping[int, tuple[Proposal, ...]] = field(default_factory=dict)
    draft_ms: float = 0.0  # median of the steps of one token, on the machine of the file's header
    cross_entropies: Mapping[int, float] | None = None
    device: TracedDevice | None = None
    source: str = field(default="traces", compare=False)

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.proposals) == len(self.ranks):
            raise ConfigError(
                f"trace {self.id}: {len(self.token_ids)} tokens, {len(self.proposals)} proposals and "
                f"{len(self.ranks)} ranks; they must be as many. Record it again"
            )

    @property
    def own_token_ids(self) -> frozenset[int]:
        """The ids of all tokens and second choices in the trace."""
        rows = [self.proposals, *self.astray.values()]
        proposed = {one for row in rows for proposal in row for one in (proposal.token_id, proposal.runner_up)}
        return frozenset(proposed | set(self.token_ids))

    @property
    def matches(self) -> tuple[bool, ...]:
        """True at each position where the device's choice is the cloud's."""
        return tuple(
            proposal.token_id == token_id for proposal, token_id in zip(self.proposals, self.token_ids, strict=True)
        )


@dataclass(frozen=True, slots=True)
class TraceFile:
    """The traces of a file with their header."""

    header: Mapping[str, Any]
    traces: tuple[Trace, ...]


def load_traces(path: Path | str) -> TraceFile:
    """Return the traces of a file; raise ConfigError if it is not one of traces."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            header, *rows = map(json.loads, lines)
        if header.get("format") != FORMAT:
            raise ConfigError(f"{path}: format {header.get('format')!r}, expected {FORMAT}; record the traces again")
        return TraceFile(header, tuple(_decode(row, source=str(path)) for row in rows))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a file of traces ({error}); record it with `python -m benchmarks record`"
        ) from None


def traces_of(option: str, *paths: Path) -> tuple[Trace, ...]:
    """Return the traces of all files of a command's option; raise ConfigError if none holds a trace."""
    traces = tuple(trace for path in paths for trace in load_traces(path).traces)
    if not traces:
        verb = "holds" if len(paths) == 1 else "hold"
        raise ConfigError(
            f"{option}: {', '.join(map(str, paths))} {verb} no trace; record one with `python -m benchmarks record`"
        )
    return traces


def save_traces(path: Path, file: TraceFile) -> None:
    """Write the whole file again; an interruption leaves the old one intact."""
    unfinished = path.with_name(path.name + ".part")
    lines = [dict(file.header, format=FORMAT), *map(_encode, file.traces)]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    unfinished.write_bytes(gzip.compress(text.encode(), mtime=0))
    unfinished.replace(path)


def lacking(trace: Trace, what: str) -> ConfigError:
    """Return the error for a trace that lacks a value that a strategy decides by."""
    return ConfigError(
        f"{trace.source}: trace {trace.id} has no {what}; add it with `python -m benchmarks extend {trace.source}`"
    )


def with_disagreement_as_risk(trace: Trace) -> Trace:
    """Return the trace with each proposal's disagreement as its risk."""
    proposals = []
    for proposal in trace.proposals:
        if not isinstance(proposal, ExtendedProposal):
            raise lacking(trace, "disagreements")
        proposals.append(replace(proposal, signal=replace(proposal.signal, risk=proposal.disagreement)))
    return replace(trace, proposals=tuple(proposals))


def _encode(trace: Trace) -> dict[str, Any]:
    measured = trace.device is not None
    row = {
        "id": trace.id,
        "category": trace.category,
        "temperature": trace.sampling.temperature,
        "seed": trace.sampling.seed,
        "prompt_tokens": trace.prompt_tokens,
        "max_new_tokens": trace.max_new_tokens,
        "eos_token_ids": trace.eos_token_ids,
        "token_ids": trace.token_ids,
        "ended": trace.ended,
        "proposals": _columns(trace.proposals, varentropy=measured),
        "ranks": trace.ranks,
        "astray": {str(position): _columns(rows, varentropy=measured) for position, rows in trace.astray.items()},
        "draft_ms": round(trace.draft_ms, 2),
    }
    if trace.cross_entropies is not None:
        row["cross_entropies"] = {str(at): _short(nats) for at, nats in trace.cross_entropies.items()}
    if trace.device is not None:
        texts = {str(token_id): text for token_id, text in sorted(trace.device.token_texts.items())}
        row["device"] = {
            "pair": trace.device.pair,
            "model": trace.device.model,
            "digest": trace.device.digest,
            "token_texts": texts,
        }
    return row


def _decode(row: Mapping[str, Any], source: str) -> Trace:
    cross_entropies, device = row.get("cross_entropies"), row.get("device")
    return Trace(
        id=row["id"],
        category=row["category"],
        sampling=SamplingParams(temperature=row["temperature"], seed=row["seed"]),
        prompt_tokens=row["prompt_tokens"],
        max_new_tokens=row["max_new_tokens"],
        eos_token_ids=tuple(row["eos_token_ids"]),
        token_ids=tuple(row["token_ids"]),
        ended=row["ended"],
        proposals=_rows(row["proposals"]),
        ranks=tuple(row["ranks"]),
        astray={int(position): _rows(columns) for position, columns in row["astray"].items()},
        draft_ms=row["draft_ms"],
        cross_entropies=None if cross_entropies is None else {int(at): nats for at, nats in cross_entropies.items()},
        device=None if device is None else _decode_device(device),
        source=source,
    )


def _decode_device(row: Mapping[str, Any]) -> TracedDevice:
    texts = {int(token_id): text for token_id, text in row["token_texts"].items()}
    return TracedDevice(row["pair"], row["model"], row["digest"], texts)


def _columns(proposals: Sequence[Proposal], *, varentropy: bool) -> dict[str, list[Any]]:
    signals = [proposal.signal for proposal in proposals]
    columns: dict[str, list[Any]] = {
        "token_id": [proposal.token_id for proposal in proposals],
        "runner_up": [proposal.runner_up for proposal in proposals],
        "entropy_nats": [_short(signal.entropy_nats) for signal in signals],
        "top1_probability": [_short(signal.top1_probability) for signal in signals],
        "margin": [_short(signal.margin) for signal in signals],
        "coupled_margin": [_short(signal.coupled_margin) for signal in signals],
        "risk": [_short(signal.risk) for signal in signals],
    }
    if varentropy:
        columns["varentropy"] = [_short(signal.varentropy) for signal in signals]
    known = [proposal.disagreement for proposal in proposals if isinstance(proposal, ExtendedProposal)]
    if known:
        columns["disagreement"] = [float(f"{value:.{_DISAGREEMENT_DIGITS}g}") for value in known]
    return columns


def _rows(columns: Mapping[str, Sequence[Any]]) -> tuple[Proposal, ...]:
    signals = zip(
        columns["entropy_nats"],
        columns["top1_probability"],
        columns["margin"],
        columns["coupled_margin"],
        columns["risk"],
        columns.get("varentropy", [0.0] * len(columns["risk"])),
        strict=True,
    )
    proposals = [
        Proposal(token_id, Signal(*map(float, signal)), runner_up)
        for token_id, runner_up, signal in zip(columns["token_id"], columns["runner_up"], signals, strict=True)
    ]
    if "disagreement" not in columns:
        return tuple(proposals)
    return tuple(map(extended, proposals, columns["disagreement"]))


def extended(proposal: Proposal, disagreement: float) -> ExtendedProposal:
    """Return the same proposal with its disagreement."""
    return ExtendedProposal(proposal.token_id, proposal.signal, proposal.runner_up, float(disagreement))


def _short(value: float) -> float:
    return float(f"{value:.{_SIGNAL_DIGITS}g}")
