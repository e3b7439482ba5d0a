"""The prompts that are reported on were fixed before anything was tuned, and nothing is tuned on them."""

import hashlib
import json
from pathlib import Path

import pytest

SETS = Path(__file__).parents[2] / "benchmarks" / "prompt_sets"
DIGESTS = {
    "reporting": "2fd0dac1038f793dcf8c8bbdeada7066121f191e2433178670cb2fae8efc4046",
    "tuning": "56422c406845d49b841851fd041f5193aa3201936803634adc75e9458979af2f",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_set_is_the_one_that_was_fixed(name: str) -> None:
    assert hashlib.sha256((SETS / f"{name}.jsonl").read_bytes()).hexdigest() == DIGESTS[name]


def test_reporting_and_tuning_share_no_prompt() -> None:
    reporting, tuning = (
        {json.loads(line)["prompt"] for line in (SETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()}
        for name in ("reporting", "tuning")
    )
    assert len(reporting) == 12
    assert len(tuning) == 16
    assert not reporting & tuning
