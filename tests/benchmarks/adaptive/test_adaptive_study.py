"""The study of adaptive computation from seeds, on a network that learns for seconds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptive import corpus
from adaptive.corpus import Document
from benchmarks.adaptive.run import add_arguments, run


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def files() -> Iterator[Document]:
    for number in range(120):
        yield Document(f"package/{number}.py", "".join(f"value_{each} = {each * number % 7}\n" for each in range(60)))


def test_a_quick_study_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "documents", files)
    options = ("--quick", "--steps", "30", "--work", str(tmp_path))
    assert run(parsed(*options, "--max-seconds", "0.0")) is None
    result = run(parsed(*options))
    assert result is not None
    summary = result["summary"]
    assert summary["losses"]["all big"] < 6.3, "it has learned something"
    budgets = [row["budget"] for row in summary["by_budget"]]
    assert budgets == [0.0, 1.0, 2.0, 4.0]
    for row in summary["by_budget"]:
        assert row["oracle"] <= row["best_fixed"]
        assert row["oracle_cost"] <= row["budget"] + 1e-6
    assert "router" in summary["by_budget"][1]
    assert {name: found["reproduced"] for name, found in summary["findings"].items()}.keys() == {
        "the oracle with one big layer beats all big layers",
        "learned routers are near the best fixed pattern and far from the oracle",
        "difficulty is what can be gained, not how high the loss is",
    }
    again = run(parsed(*options))
    assert again is not None
    assert again["summary"] == summary
