"""Varentropies of recorded proposals, read again by an instant model."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from benchmarks.kit.prompts import Prompt
from benchmarks.simulation.trace import Trace, extended
from benchmarks.traces.record import TracingReader
from benchmarks.traces.signals import Repeats, with_varentropies
from chaperone_common.sampling import choose, softmax
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason, Proposal, SamplingParams
from edge_client.generation import Generation
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget

PROMPT = (3, 4, 5)
CLOUD, DEVICE, OTHER = FakeTarget(seed=1), FakeTarget(seed=1, disturbance=0.4), FakeTarget(seed=2)
TOKENS = 40


def recorded(temperature: float) -> Trace:
    sampling = SamplingParams(temperature=temperature, seed=5)
    text: tuple[int, ...] = PROMPT
    for _ in range(TOKENS):
        text += (choose(softmax(CLOUD.logits(text), temperature), sampling, len(text)).token_id,)
    written = Generation(PROMPT, text[len(PROMPT) :], "", (), FinishReason.LENGTH, GenerationStats())
    reader = TracingReader(FakeDraft(DEVICE), sampling, [10**6], TOKENS)
    return asyncio.run(reader.read(Prompt("one", "general", "not read"), written))


def forgotten(trace: Trace) -> Trace:
    """Return the trace without its varentropies."""

    def without(proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
        return tuple(replace(one, signal=replace(one.signal, varentropy=0.0)) for one in proposals)

    astray = {index: without(proposals) for index, proposals in trace.astray.items()}
    return replace(trace, proposals=without(trace.proposals), astray=astray)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_recorded_model_gives_the_varentropies_that_a_recording_has(temperature: float) -> None:
    trace = recorded(temperature)
    assert all(proposal.signal.varentropy > 0 for proposal in trace.proposals)
    again, repeats = asyncio.run(with_varentropies(FakeDraft(DEVICE), forgotten(trace), PROMPT))
    assert again == trace
    astray = sum(map(len, trace.astray.values()))
    assert astray > 0
    assert repeats == Repeats(TOKENS, TOKENS, astray, astray)


def test_another_model_reads_the_recorded_tokens_and_changes_no_recorded_value() -> None:
    trace = recorded(0.0)
    again, repeats = asyncio.run(with_varentropies(FakeDraft(OTHER), trace, PROMPT))
    assert forgotten(again) == forgotten(trace)
    assert again != trace
    assert repeats.proposals == TOKENS
    assert repeats.same_proposals < TOKENS
    assert repeats.same_astray < repeats.astray


def test_disagreements_stay() -> None:
    trace = recorded(0.0)
    trace = replace(trace, proposals=tuple(extended(proposal, 0.25) for proposal in trace.proposals))
    again, _ = asyncio.run(with_varentropies(FakeDraft(DEVICE), forgotten(trace), PROMPT))
    assert again == trace
