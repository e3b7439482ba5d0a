"""The signals that the device's model gives on recorded texts: `python -m benchmarks extend`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from benchmarks.simulation.trace import Trace
from chaperone_common.sampling import choose, softmax
from chaperone_common.types import Proposal, SamplingParams, Signal
from edge_client.model.uncertainty import measure
from edge_client.ports import DraftModel

P = TypeVar("P", bound=Proposal)


class Reread(NamedTuple):
    """A model's answer where a proposal was recorded."""

    token_id: int
    signal: Signal


class Repeats(NamedTuple):
    """Counts of positions that a model read again, and of those where it proposed the recorded token."""

    proposals: int = 0  # along the text
    same_proposals: int = 0
    astray: int = 0
    same_astray: int = 0


async def with_varentropies(model: DraftModel, trace: Trace, prompt: Sequence[int]) -> tuple[Trace, Repeats]:
    """Return the trace with the varentropy of each proposal; all other values stay as recorded.

    The model is fed the recorded tokens, also where it would choose others. It reads many tokens at a time, which
    changes the last digits of its scores.
    """
    tokens, sampling = len(trace.token_ids), trace.sampling
    if len(prompt) > 1:
        await model.step(prompt[:-1])
    along = await _read(model, (prompt[-1], *trace.token_ids[: tokens - 1]), sampling)
    astray = {}
    for index in sorted(trace.astray, reverse=True):  # a rewound text cannot be read further without feeding it again
        model.rewind(len(prompt) + index)
        recorded = trace.astray[index]
        fed = (trace.proposals[index].token_id, *(proposal.token_id for proposal in recorded[:-1]))
        astray[index] = await _read(model, fed[: len(recorded)], sampling)
    model.close()
    found = replace(
        trace,
        proposals=_measured(trace.proposals, along),
        astray={index: _measured(proposals, astray[index]) for index, proposals in trace.astray.items()},
    )
    return found, _repeats(trace, along, astray)


async def _read(model: DraftModel, token_ids: Sequence[int], sampling: SamplingParams) -> list[Reread]:
    """Feed tokens; return the model's answer after each."""
    answers = []
    async for step in model.read(token_ids):
        soft = softmax(step.logits, sampling.temperature)
        choice = choose(soft, sampling, step.position)
        answers.append(Reread(choice.token_id, measure(soft, choice)))
    return answers


def _measured(proposals: Sequence[P], answers: Sequence[Reread]) -> tuple[P, ...]:
    return tuple(
        replace(proposal, signal=replace(proposal.signal, varentropy=answer.signal.varentropy))
        for proposal, answer in zip(proposals, answers, strict=True)
    )


def _repeats(trace: Trace, along: Sequence[Reread], astray: dict[int, list[Reread]]) -> Repeats:
    return Repeats(
        len(along),
        _same(trace.proposals, along),
        sum(map(len, astray.values())),
        sum(_same(trace.astray[index], answers) for index, answers in astray.items()),
    )


def _same(proposals: Sequence[Proposal], answers: Sequence[Reread]) -> int:
    return sum(proposal.token_id == answer.token_id for proposal, answer in zip(proposals, answers, strict=True))
