"""Traces made by hand, for tests with results computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.simulation.trace import ASTRAY_TOKENS, Trace, TracedDevice, extended
from chaperone_common.types import Proposal, SamplingParams, Signal

EOS = 7
SURE = Signal(entropy_nats=0.1, top1_probability=0.9, margin=0.8, coupled_margin=3.0, risk=0.0)
UNSURE = Signal(entropy_nats=2.0, top1_probability=0.3, margin=0.1, coupled_margin=0.2, risk=0.5)
LOST = Signal(entropy_nats=3.0, top1_probability=0.2, margin=0.1, coupled_margin=0.1, risk=0.25)


def trace_of(pattern: str, *, prompt_tokens: int = 4, ended: bool = False, wrong: Signal = UNSURE) -> Trace:
    """Return a trace of one token a character.

    `+`: the device chooses the cloud's token. `-`: the device's second choice is the cloud's token.
    The cloud writes 100, 101, ..., the device 200 + n in place of 100 + n, and astray from there 300, 301, ...
    An `ended` trace ends in end-of-text.
    """
    token_ids = [100 + index for index in range(len(pattern))]
    if ended:
        token_ids[-1] = EOS
    proposals = [
        Proposal(token_id, SURE, 400) if sign == "+" else Proposal(200 + index, wrong, token_id)
        for index, (sign, token_id) in enumerate(zip(pattern, token_ids, strict=True))
    ]
    max_new_tokens = 2 * len(pattern) if ended else len(pattern)
    gone = {index: min(ASTRAY_TOKENS, max_new_tokens - index - 1) for index, sign in enumerate(pattern) if sign == "-"}
    return Trace(
        id="by hand",
        category="general",
        sampling=SamplingParams(),
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        eos_token_ids=(EOS,),
        token_ids=tuple(token_ids),
        ended=ended,
        proposals=tuple(proposals),
        ranks=tuple(int(sign == "-") for sign in pattern),
        astray={
            index: tuple(Proposal(300 + step, LOST, 400) for step in range(count)) for index, count in gone.items()
        },
        draft_ms=10.0,
    )


def extended_trace(
    trace: Trace, *, cross_entropies: Mapping[int, float] | None = None, disagreements: Sequence[float] = ()
) -> Trace:
    """Return the trace with the fields of `python -m benchmarks extend`.

    By default the device is sure and the cloud strict.
    """
    astray = dict.fromkeys(trace.astray, 20.0) | dict(cross_entropies or {})
    unsure = disagreements or [0.0] * len(trace.proposals)
    return replace(trace, cross_entropies=astray, proposals=tuple(map(extended, trace.proposals, unsure)))


def measured_trace(trace: Trace, *, pair: str = "none", varentropy: float = 0.5) -> Trace:
    """Return the trace with the fields that a calibrated gate reads; the text of a token is its id."""

    def measured(proposals: Sequence[Proposal]) -> tuple[Proposal, ...]:
        return tuple(
            replace(proposal, signal=replace(proposal.signal, varentropy=varentropy)) for proposal in proposals
        )

    texts = {token_id: f" {token_id}" for token_id in trace.own_token_ids}
    return replace(
        trace,
        proposals=measured(trace.proposals),
        astray={index: measured(proposals) for index, proposals in trace.astray.items()},
        device=TracedDevice(pair, "drafter", "sha256:device", texts),
    )
