"""The reported prompts were fixed before any tuning, and are never used for tuning."""

import hashlib
import json
from pathlib import Path

import pytest

SETS = Path(__file__).parents[3] / "benchmarks" / "prompt_sets"
DIGESTS = {
    "code": "0c71b63a936b8c3e209efa5379cc912deed540160ca90621809a564b93a8dda0",
    "prose": "e1a3a38fb60376d8d619c546bd963c87ff517658b19b38e3f154873f6f07e373",
    "reporting": "26055ec2b893e69ce62b3a9cfb7835f0ac8c0bfe736768ea5a425816ee406df1",
    "tuning": "e7c5a27b2853d2d6df25399f8deb91a73186e0e49f943158dc96d32186696573",
    "whole": "a7a696494934b78090c7488b7f5d2c55d9c3bdb879f8bd8dd5bd42611a1b09d3",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_prompt_set_equals_its_fixed_digest(name: str) -> None:
    assert hashlib.sha256((SETS / f"{name}.jsonl").read_bytes()).hexdigest() == DIGESTS[name]


def prompts_of(name: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in (SETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_no_prompt_is_in_two_sets() -> None:
    sets = {name: prompts_of(name) for name in DIGESTS if name != "whole"}
    assert {name: len(prompts) for name, prompts in sets.items()} == {
        "code": 96,
        "prose": 48,
        "reporting": 12,
        "tuning": 16,
    }
    assert len({prompt for prompts in sets.values() for prompt in prompts}) == 96 + 48 + 12 + 16


def test_prompts_of_whole_answers_were_never_tuned_on() -> None:
    whole = prompts_of("whole")
    assert len(set(whole)) == 24
    assert not set(whole) & {*prompts_of("tuning"), *prompts_of("code")}
    assert len(set(whole) & {*prompts_of("prose")}) == 12
