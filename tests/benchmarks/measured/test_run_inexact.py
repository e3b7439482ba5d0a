"""BiLD and U-HLM on the tiny pair: real processes, and a lenient cloud of its own for each leniency."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.commands import ROOT, environment

STRATEGIES = ("cloud", "exact", "bild-0-0", "bild-0-9", "uhlm-0", "uhlm-0.4")


@pytest.mark.usefixtures("tiny_pair")
def test_both_over_a_link(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "r.json"
    rows = [{"id": str(index), "class": "general", "prompt": f"write letter {index}"} for index in range(2)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks", "run", "--prompts", str(prompts), "--pair", "tiny"]
    command += ["--work", str(tmp_path / "work"), "--max-new-tokens", "24", "--rtt-ms", "4", "--dtype", "float32"]
    command += ["--strategies", ",".join(STRATEGIES), "--out", str(out)]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert all(row["error"] is None for row in result["generations"])
    assert all(row["link_bytes_up"] > row["stats"]["bytes_up"] > 0 for row in result["generations"])
    summary = result["summary"]
    assert summary["exact_output_equals_cloud"] == {"equal": 2, "of": 2}, "of `exact` alone"
    entries = summary["categories"]["all"]
    assert entries["uhlm-0"]["equal_cloud"] == {"equal": 2, "of": 2}, "every token is asked about"
    assert entries["uhlm-0"]["deviations_per_100_tokens"] == 0
    assert entries["bild-0-0"]["equal_cloud"] == {"equal": 2, "of": 2}, "nothing is let stand but what is certain"
    assert entries["bild-0-9"]["deviations_per_100_tokens"] is None, "nobody counts them"
    assert set(summary["regret"]["categories"]["all"]["median_ms"]) == {"cloud", "exact"}

    def stats(name: str, field: str) -> list[float]:
        return [row["stats"][field] for row in result["generations"] if row["strategy"] == name]

    assert sum(stats("uhlm-0", "skipped_tokens")) == 0 < sum(stats("uhlm-0.4", "skipped_tokens"))
    assert sum(stats("uhlm-0.4", "round_trips")) < sum(stats("uhlm-0", "round_trips"))
    assert sum(stats("bild-0-9", "overridden_tokens")) < sum(stats("bild-0-0", "overridden_tokens"))
