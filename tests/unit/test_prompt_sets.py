"""The prompts that are reported on were fixed before anything was tuned, and nothing is tuned on them."""

import hashlib
import json
from pathlib import Path

import pytest

SETS = Path(__file__).parents[2] / "benchmarks" / "prompt_sets"
DIGESTS = {
    "reporting": "26055ec2b893e69ce62b3a9cfb7835f0ac8c0bfe736768ea5a425816ee406df1",
    "tuning": "e7c5a27b2853d2d6df25399f8deb91a73186e0e49f943158dc96d32186696573",
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
