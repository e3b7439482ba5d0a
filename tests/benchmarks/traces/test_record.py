"""The recorder, with instant models."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kit.prompts import Prompt, read_prompts
from benchmarks.simulation.trace import ASTRAY_TOKENS, Trace, TraceFile, save_traces
from benchmarks.traces.record import TracingReader, begun
from chaperone_common.errors import ConfigError
from chaperone_common.sampling import choose, noise, softmax
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason, SamplingParams
from edge_client.generation import Generation
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget

PROMPT = (3, 4, 5)
CLOUD, DEVICE = FakeTarget(seed=1), FakeTarget(seed=1, disturbance=0.4)
NEVER = 10**6


def next_token(model: FakeTarget, text: tuple[int, ...], sampling: SamplingParams) -> int:
    return choose(softmax(model.logits(text), sampling.temperature), sampling, len(text)).token_id


def record(sampling: SamplingParams, *, tokens: int, max_new_tokens: int, eos: int = NEVER) -> Trace:
    text: tuple[int, ...] = PROMPT
    for _ in range(tokens):
        text += (next_token(CLOUD, text, sampling),)
    written = Generation(PROMPT, text[len(PROMPT) :], "", (), FinishReason.LENGTH, GenerationStats())
    reader = TracingReader(FakeDraft(DEVICE), sampling, [eos], max_new_tokens)
    return asyncio.run(reader.read(Prompt("one", "general", "not read"), written))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_proposals_along_the_clouds_text_and_astray_are_recorded(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=5)
    trace = record(sampling, tokens=60, max_new_tokens=60)
    assert 10 < sum(trace.matches) < 58, "the pair must agree and disagree"
    text = PROMPT + trace.token_ids
    for index, proposal in enumerate(trace.proposals):
        prefix = text[: len(PROMPT) + index]
        assert proposal.token_id == next_token(DEVICE, prefix, sampling)
        if proposal.token_id == trace.token_ids[index]:
            assert index not in trace.astray
            continue
        for step in trace.astray[index]:
            prefix += (proposal.token_id,)
            assert step.token_id == next_token(DEVICE, prefix, sampling)
            proposal = step
        assert len(trace.astray[index]) == min(ASTRAY_TOKENS, 60 - index - 1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_ranks_are_positions_in_the_devices_scores(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=5)
    trace = record(sampling, tokens=60, max_new_tokens=60)
    text = PROMPT + trace.token_ids
    assert max(trace.ranks) > 1
    for index, rank in enumerate(trace.ranks):
        prefix = text[: len(PROMPT) + index]
        scores = DEVICE.logits(prefix).astype(np.float64)
        if temperature:
            scores = scores / temperature - np.log(-np.log(noise(5, len(prefix), len(scores))))
        assert np.argsort(-scores, kind="stable")[rank] == trace.token_ids[index]


def test_nothing_is_recorded_after_end_of_text() -> None:
    free = record(SamplingParams(), tokens=20, max_new_tokens=60)
    index = min(free.astray)
    ending = free.astray[index][3].token_id
    gone = record(SamplingParams(), tokens=20, max_new_tokens=60, eos=ending).astray[index]
    first = next(step for step, proposal in enumerate(free.astray[index]) if proposal.token_id == ending)
    assert gone == free.astray[index][: first + 1]


def test_a_prompt_set_is_read_by_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"id": "a", "class": "general", "prompt": "Hello"}) + "\n", encoding="utf-8")
    assert read_prompts(path) == [Prompt("a", "general", "Hello")]
    path.write_text('{"id": "a"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="not a prompt set"):
        read_prompts(path)


def test_traces_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl.gz"
    header = {"prompts_sha256": "a", "pair": "tiny", "models": {}, "settings": {"temperature": 0.0}}
    assert begun(path, header) == TraceFile(header, ())
    save_traces(path, TraceFile(header, ()))
    assert begun(path, header).traces == ()
    with pytest.raises(ConfigError, match="settings are others than asked for"):
        begun(path, {**header, "settings": {"temperature": 0.7}})
