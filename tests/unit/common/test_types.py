"""Impossible values are refused with the field, the value and the remedy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.errors import InvalidRequest
from chaperone_common.ranges import MAX_SEED, MAX_STOP_LENGTH, MAX_STOP_STRINGS
from chaperone_common.token_tree import common_prefix
from chaperone_common.types import (
    GenerationParams,
    PromptInput,
    SamplingParams,
    Span,
)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("temperature", -0.1, "use 0 for greedy"),
        ("temperature", math.nan, "use 0 for greedy"),
        ("temperature", math.inf, "use 0 for greedy"),
        ("top_p", 0.0, "use 1 to switch it off"),
        ("top_p", -0.5, "use 1 to switch it off"),
        ("top_p", 1.01, "use 1 to switch it off"),
        ("top_p", math.nan, "use 1 to switch it off"),
        ("top_k", -1, "use 0 to switch it off"),
        ("min_p", -0.01, "use 0 to switch it off"),
        ("min_p", 1.5, "use 0 to switch it off"),
        ("min_p", math.nan, "use 0 to switch it off"),
        ("seed", -1, "[0, 2**64 - 1]"),
        ("seed", MAX_SEED + 1, "[0, 2**64 - 1]"),
    ],
)
def test_bad_sampling_is_refused(field: str, value: float, remedy: str) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**arguments)
    message = str(caught.value)
    assert message.startswith(f"{field}: {value}")
    assert remedy in message


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 0.0},
        {"temperature": 1e300},
        {"top_p": 1e-9},
        {"top_p": 1.0},
        {"top_k": 0},
        {"top_k": 10**9},
        {"min_p": 0.0},
        {"min_p": 1.0},
        {"seed": 0},
        {"seed": MAX_SEED},
    ],
)
def test_the_edges_of_sampling_are_allowed(arguments: dict[str, Any]) -> None:
    assert dataclasses.asdict(SamplingParams(**arguments)).items() >= arguments.items()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"max_new_tokens": 0}, ["max_new_tokens", "0", "outside [1, "]),
        ({"max_new_tokens": -5}, ["max_new_tokens", "-5", "outside [1, "]),
        ({"stop": ("",)}, ["stop", "''", f"1 to {MAX_STOP_LENGTH}"]),
        ({"stop": ("x" * (MAX_STOP_LENGTH + 1),)}, ["stop", "xxx", f"1 to {MAX_STOP_LENGTH}"]),
        ({"stop": ("x",) * (MAX_STOP_STRINGS + 1)}, ["stop", str(MAX_STOP_STRINGS + 1), f"at most {MAX_STOP_STRINGS}"]),
    ],
)
def test_bad_generation_is_refused(arguments: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        GenerationParams(**arguments)
    assert all(part in str(caught.value) for part in parts)


def test_the_edges_of_generation_are_allowed() -> None:
    params = GenerationParams(max_new_tokens=1, stop=("x" * MAX_STOP_LENGTH,) * MAX_STOP_STRINGS)
    assert params.sampling == SamplingParams()


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt: it is empty; give at least one token"):
        PromptInput(())


def test_values_are_frozen() -> None:
    params = SamplingParams()
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 3  # type: ignore[misc]


def test_a_span_ends_after_its_last_token() -> None:
    assert Span(0, 7, (1, 2, 3), 7, 0).end == 10
    assert Span(0, 7, (), 7, 0).end == 7


@given(shared=st.lists(st.integers(0, 2)), left=st.lists(st.integers(0, 2)), right=st.lists(st.integers(0, 2)))
def test_common_prefix(shared: list[int], left: list[int], right: list[int]) -> None:
    left, right = shared + left, shared + right
    count = common_prefix(left, right)
    assert count >= len(shared)
    assert left[:count] == right[:count]
    assert count == min(len(left), len(right)) or left[count] != right[count]


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [([1, 2], [1, 2, 3], 2), ([1, 2], (1, 2, 3), 2), ((1, 5), [1, 2], 1), ((), [1], 0)],
)
def test_lists_and_tuples_share_common_prefixes(left: list[int], right: list[int], shared: int) -> None:
    assert common_prefix(left, right) == common_prefix(right, left) == shared
