"""Many devices on the tiny pair's service: real processes, for seconds."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load.device import Observed
from benchmarks.load.run import add_arguments, run
from chaperone_common.errors import ConfigError
from tests.support.processes.commands import ROOT, environment


@pytest.fixture(scope="module")
def result(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("load")
    prompts, out = folder / "prompts.jsonl", folder / "load.json"
    lines = [json.dumps({"id": name, "class": "general", "prompt": f"write a {name}"}) for name in ("letter", "poem")]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks", "load", "--pair", "tiny", "--devices", "6", "--seconds", "6"]
    options = ["--prompts", str(prompts), "--rate", "3", "--spans", "4", "--text-tokens", "20", "--rtt-ms", "20"]
    options += ["--figure", str(folder / "load.png")]
    done = subprocess.run(
        [*command, *options, "--limit", "max_sessions=5", "--out", str(out)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text(encoding="utf-8")) | {"figure": (folder / "load.png").read_bytes()}


def test_the_result_has_what_others_read(result: Any) -> None:
    assert result["devices"] == 6
    assert result["verifications_per_s"] > 0
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p95"] <= result["latency_ms"]["p99"]
    assert result["errors"] == 0, result["errors_by_kind"]
    assert result["refused"] > 0, "there are six devices, and places for five"
    assert 0 < result["rss_mib"]["start"] <= result["rss_mib"]["peak"]


def test_the_drafts_are_the_device_models(result: Any) -> None:
    """A span of four tokens commits from one to five; the tiny pair's models agree about most."""
    each = result["committed_tokens_per_s"] / result["verifications_per_s"]
    assert 1.0 < each <= 5.0


def test_no_verdict_is_faster_than_the_link(result: Any) -> None:
    assert result["latency_ms"]["p50"] > 20


def test_the_figure_is_written(result: Any) -> None:
    assert result["figure"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "0"], r"--devices: 0 is outside \[1, 10000\]"),
        (["--seconds", "9999"], r"--seconds: 9999.0 is outside"),
        (["--spans", "48"], "--text-tokens: 48 hold no span of 48"),
        (["--devices", "600", "--rtt-ms", "5"], "--devices: 600 with a link each; at most 512"),
        (["--limit", "step_tokens"], "--limit: 'step_tokens'; give NAME=NUMBER"),
    ],
)
def test_impossible_options_are_refused(options: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigError, match=message):
        run(parser.parse_args(options))


@pytest.mark.usefixtures("tiny_pair")
def test_a_long_prompt_comes_in_the_middle() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--pair", "tiny", "--devices", "3", "--seconds", "12", "--rate", "4", "--spans", "4"]
    result = run(parser.parse_args([*options, "--texts", "1", "--text-tokens", "20", "--long-prompt", "300"]))
    newcomer = result["summary"]["long_prompt"]
    assert newcomer["tokens"] == 300
    assert 0 < newcomer["read_s"] < 6
    assert result["errors"] == 0, result["errors_by_kind"]
    assert newcomer["verifications"]["before"] > 0


def test_errors_and_refusals_before_the_measured_time_count() -> None:
    observed = Observed([1.0], [2.0], committed=3, refused=4, errors=Counter(INTERNAL=5), late=6)
    observed.begin()
    assert observed == Observed([], [2.0], committed=0, refused=4, errors=Counter(INTERNAL=5), late=0)
