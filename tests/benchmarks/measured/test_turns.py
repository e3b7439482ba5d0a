"""The first token of a conversation's third turn, measured with the tiny pair."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.measured.turns import add_arguments, run
from chaperone_common.errors import ConfigError


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


@pytest.mark.usefixtures("tiny_pair")
@pytest.mark.timeout(400)
def test_a_third_turn_reads_as_much_as_the_text_that_it_is_compared_with() -> None:
    result = run(parsed("--pair", "tiny", "--rounds", "2", "--reply-tokens", "6", "--rtt-ms", "2"))
    assert {*result["summary"]} == {"exact", "gated", "cloud"}
    assert len(result["rows"]) == 6
    for row in result["rows"]:
        third, first = row["third"], row["first"]
        cached = third["cloud_cached_tokens" if row["mode"] == "cloud" else "edge_cached_tokens"]
        assert cached > third["prompt_tokens"] / 2
        assert third["prompt_tokens"] - cached == first["prompt_tokens"]
        assert first["edge_cached_tokens"] == first["cloud_cached_tokens"] == 0
    for summary in result["summary"].values():
        assert summary["ttft_committed_ms"]["ratio"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", "0"), "--rounds: 0 is outside"),
        (("--reply-tokens", "9999"), "--reply-tokens: 9999 is outside"),
        (("--modes", "exact,fast"), "--modes: 'fast' is none of exact, gated"),
    ],
)
def test_wrong_options_are_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(parsed(*options))
