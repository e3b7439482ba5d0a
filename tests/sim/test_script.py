"""The scripted answers of the two models."""

from __future__ import annotations

import pytest

from benchmarks.simulation.script import CLOUD_FILLER, DEVICE_FILLER, PROMPT_TOKEN, VOCABULARY_SIZE, Script
from chaperone_common.errors import ConfigError
from tests.support.benchmarks.traces import EOS, LOST, UNSURE, extended_trace, trace_of

PROMPT = [PROMPT_TOKEN] * 4
TRACE = trace_of("++-+-+")


def test_both_models_follow_the_recorded_path() -> None:
    script = Script(TRACE)
    for length in range(6):
        text = PROMPT + list(TRACE.token_ids[:length])
        assert script.proposal(text) == TRACE.proposals[length]
        assert script.choices(text, 1) == [100 + length]
    assert script.choices([*PROMPT, 100, 101, 102, 103, 104], 6) == [100, 101, 102, 103, 104, 105]


def test_astray_the_device_continues_as_recorded_and_then_with_filler() -> None:
    script = Script(TRACE)
    astray = [100, 101, 202]
    for step in range(3):
        assert script.proposal(PROMPT + astray).token_id == 300 + step
        astray.append(300 + step)
    beyond = script.proposal(PROMPT + astray)
    assert (beyond.token_id, beyond.signal) == (DEVICE_FILLER, LOST), "the last signal is repeated"
    assert script.proposal([*PROMPT, *astray, DEVICE_FILLER]).token_id == DEVICE_FILLER


def test_on_an_unrecorded_branch_the_device_writes_filler() -> None:
    branch = Script(TRACE).proposal([*PROMPT, 100, 101, 999])
    assert (branch.token_id, branch.signal) == (DEVICE_FILLER, UNSURE)


def test_the_cloud_overrides_where_the_text_leaves_the_path_and_is_void_after_it() -> None:
    choices = Script(TRACE).choices([*PROMPT, 100, 101, 202, 300], 5)
    assert choices == [100, 101, 102, CLOUD_FILLER, CLOUD_FILLER]


def test_after_a_token_that_is_kept_both_continue_as_recorded() -> None:
    script = Script(TRACE)
    script.keep(4 + 2)
    text = [*PROMPT, 100, 101, 202]
    assert script.proposal(text) == TRACE.proposals[3]
    assert script.choices([*text, 103], 3) == [102, 103, 104], "and the cloud still chooses another token there"
    script.keep(4 + 4)
    assert script.choices([*text, 103, 204, 105], 2) == [105, CLOUD_FILLER]


def test_a_lenient_cloud_chooses_the_device_s_token_where_the_text_has_it() -> None:
    trace = extended_trace(TRACE, cross_entropies={2: 2.0, 4: 2.001})
    script = Script(trace, lenient_nats=2.0)
    text = [*PROMPT, 100, 101, 202]
    assert script.choices([*text, 103, 204, 300], 7) == [100, 101, 202, 103, 104, CLOUD_FILLER, CLOUD_FILLER]
    assert script.proposal(text) == trace.proposals[3], "the device continues as after the cloud's token"
    assert script.choices([*PROMPT, 100, 101], 1) == [102], "no token was drafted there"
    assert script.choices([*PROMPT, 100, 101, 999, 103], 3) == [102, CLOUD_FILLER, CLOUD_FILLER], "another token"


def test_leniency_needs_cross_entropies() -> None:
    with pytest.raises(ConfigError, match="traces: trace by hand has no cross-entropies; .* extend traces"):
        Script(TRACE, lenient_nats=2.0)


def test_retracted_tokens_are_not_kept() -> None:
    script = Script(TRACE)
    script.keep(4 + 2)
    script.drop(4 + 2)
    assert script.proposal([*PROMPT, 100, 101, 202]).token_id == 300


def test_the_recording_ends_with_the_text() -> None:
    trace = trace_of("++-", ended=True)
    script = Script(trace)
    text = [*PROMPT, 100, 101, EOS]
    assert script.proposal(text).token_id == DEVICE_FILLER
    assert script.choices(text, 2) == [EOS, CLOUD_FILLER]


@pytest.mark.parametrize("filler", [CLOUD_FILLER, DEVICE_FILLER, PROMPT_TOKEN])
def test_fillers_are_valid_ids(filler: int) -> None:
    assert 2**20 <= filler < VOCABULARY_SIZE, "beyond every tokenizer, and three bytes long on the wire as other ids"


def test_choices_inside_the_prompt_were_not_recorded() -> None:
    script = Script(TRACE)
    assert script.choices(PROMPT, 1) == [100]
    assert script.choices(PROMPT[:2], 0) == []
    with pytest.raises(ValueError, match="inside the prompt"):
        script.choices(PROMPT, 2)
