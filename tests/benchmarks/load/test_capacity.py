"""The search for the largest number of devices, and a run of the tiny pair."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.capacity import SERVICES, add_arguments, largest, run
from chaperone_common.errors import ConfigError


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


@given(st.integers(0, 400), st.integers(1, 300))
def test_the_largest_number_is_found_to_an_eighth(limit: int, most: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        asked.append(number)
        return number <= limit

    found = largest(holds, most)
    true = min(limit, most)
    assert found <= true <= found + max(1, found // 8)
    assert all(1 <= number <= most for number in asked)
    assert len(set(asked)) == len(asked)


@pytest.mark.usefixtures("tiny_pair")
def test_the_tiny_pair_is_searched_with_batches_and_without() -> None:
    options = ("--pair", "tiny", "--dtype", "float32", "--seconds", "2", "--rate", "4", "--spans", "4", "--texts", "1")
    result: dict[str, Any] = run(parsed(*options, "--text-tokens", "12", "--most-devices", "2", "--p95-ms", "60000"))
    for name in SERVICES:
        assert result["summary"][name]["devices"] == 2
        assert [level["devices"] for level in result["summary"][name]["levels"]] == [1, 2]
    assert result["summary"]["ratio"] == 1.0


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--p95-ms: 0.0 is outside"):
        run(parsed("--p95-ms", "0"))
