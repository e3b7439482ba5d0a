"""Runs of the tiny pair: real processes, a link between them, and a run that continues."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.kit.digests import digest_of
from benchmarks.measured.plan import rotated
from benchmarks.measured.run import add_arguments, plan_from
from chaperone_common.errors import ChaperoneError, ConfigError
from tests.support.processes.commands import ROOT, environment
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.timeout(400)  # a run starts its own processes, and imports torch in some of them

INEXACT = ("bild-0-0", "bild-0-9", "uhlm-0", "uhlm-0.4")  # BiLD has a lenient cloud for each of its leniencies
STRATEGIES = (
    *("exact", "gated", "edge", "cloud", "sync-4", "overlap-4", "acespec-4", "specedge-4", "assisted"),
    *INEXACT,
)
FAKE_CLOUD = """
import sys
from benchmarks.__main__ import main
from benchmarks.measured import generations
generations.SERVE = ("tests.support.processes.fake_server", "serve")
sys.exit(main(sys.argv[1:]))
"""


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [
        {"id": "one", "class": "humaneval", "prompt": "the list of a number is"},
        {"id": "two", "class": "general", "prompt": "write a letter"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


def options_of(prompts: Path, *arguments: str) -> list[str]:
    options = ["run", "--prompts", str(prompts), "--pair", "tiny", "--work", str(prompts.parent / "work")]
    return [*options, "--rtt-ms", "4", *arguments]


def start(program: tuple[str, str], prompts: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program, *options_of(prompts, *arguments)]
    return subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=360
    )


def plan_of(prompts: Path, *arguments: str) -> Any:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return plan_from(parser.parse_args(["--prompts", str(prompts), "--pair", "tiny", *arguments]))


@pytest.fixture(scope="module")
def result(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the result of a run with real models, all strategies and a link."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ("--strategies", ",".join(STRATEGIES), "--max-new-tokens", "24", "--dtype", "float32")
    done = start(("-m", "benchmarks"), write_prompts(folder), *arguments, "--out", str(folder / "r.json"))
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "r.json").read_text(encoding="utf-8"))


def test_all_strategies_over_a_link(result: Any) -> None:
    rows = result["generations"]
    assert Counter(row["strategy"] for row in rows) == dict.fromkeys(STRATEGIES, 2)
    assert [row["strategy"] for row in rows[len(STRATEGIES) :]] == rotated(STRATEGIES, 1)
    for row in rows:
        assert row["error"] is None
        assert len(row["commit_ms"]) == len(row["token_ids"]) == row["stats"]["completion_tokens"]
        assert row["commit_ms"] == sorted(row["commit_ms"])
        linked = row["strategy"] not in ("edge", "assisted")
        assert (row["link_bytes_up"] > row["stats"]["bytes_up"] > 0) == linked
        assert (row["link_bytes_down"] > row["stats"]["bytes_down"] > 0) == linked
    summary = result["summary"]
    assert summary["exact_output_equals_cloud"] == {"equal": 10, "of": 10}
    assert set(summary["categories"]) == {"humaneval", "general", "all"}
    assert summary["categories"]["all"]["cloud"]["over_cloud"] == 1.0
    assert 0 < summary["link_cpu_share"] < 1
    assert summary["regret"]["categories"]["all"]["median_ms"].keys().isdisjoint(INEXACT)


def test_bild_and_uhlm_over_a_link(result: Any) -> None:
    entries = result["summary"]["categories"]["all"]
    assert entries["uhlm-0"]["equal_cloud"] == {"equal": 2, "of": 2}, "every token is verified"
    assert entries["uhlm-0"]["deviations_per_100_tokens"] == 0
    assert entries["bild-0-0"]["equal_cloud"] == {"equal": 2, "of": 2}, "only certain tokens are accepted"
    assert entries["bild-0-9"]["deviations_per_100_tokens"] is None, "they are not counted"

    def total(name: str, field: str) -> float:
        return sum(float(row["stats"][field]) for row in result["generations"] if row["strategy"] == name)

    assert total("uhlm-0", "skipped_tokens") == 0 < total("uhlm-0.4", "skipped_tokens")
    assert total("uhlm-0.4", "round_trips") < total("uhlm-0", "round_trips")
    assert total("bild-0-9", "overridden_tokens") < total("bild-0-0", "overridden_tokens")


IN_ITS_OWN = "import sys; from benchmarks.kit.processes import in_its_own_process as run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.usefixtures("tiny_pair")
@pytest.mark.parametrize(("program", "dtype"), [(FAKE_CLOUD, "float32"), (IN_ITS_OWN, "auto")], ids=["run", "all"])
def test_ending_a_run_ends_its_cloud_and_its_link(prompts: Path, program: str, dtype: str) -> None:
    """The run may be a child process, as in `all`."""
    options = options_of(
        prompts, "--strategies", "cloud", "--repeats", "500", "--max-new-tokens", "12", "--dtype", dtype
    )
    command = [sys.executable, "-c", program, *options]
    with subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        lines = iter(run.stdout)
        first, second = next(lines), next(lines)
        children = psutil.Process(run.pid).children(recursive=True)
        run.terminate()
        list(lines)  # reads until the run closes its output
        code = run.wait(PATIENCE_S)
        ended, alive = psutil.wait_procs(children, PATIENCE_S)
        for child in alive:
            child.kill()
    assert "1000 of 1000 generations to make" in first
    assert "1 of 1000" in second
    assert code == 128 + signal.SIGTERM
    assert len(ended) >= 2  # the cloud and the link
    assert not alive


@pytest.mark.usefixtures("tiny_pair")
def test_a_run_continues_only_with_the_same_options(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = ("--strategies", "cloud,sync-4", "--max-new-tokens", "12", "--dtype", "float32", "--out", str(out))
    start_both = partial(start, ("-c", FAKE_CLOUD), prompts, *arguments)
    first = start_both()
    assert first.returncode == 0, first.stderr
    assert "4 of 4 generations to make" in first.stdout
    (work,) = (tmp_path / "work").iterdir()
    measured = json.loads(out.read_text(encoding="utf-8"))["generations"]

    lines = work.read_bytes().splitlines(keepends=True)
    work.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # as after a kill
    again = start_both()
    assert "2 of 4 generations to make" in again.stdout
    resumed = json.loads(out.read_text(encoding="utf-8"))["generations"]
    assert resumed[:2] == measured[:2]
    assert [row["token_ids"] for row in resumed] == [row["token_ids"] for row in measured]

    assert "generations to make" not in start_both().stdout
    assert "4 of 4 generations to make" in start_both("--fresh", "--cold").stdout
    cold = json.loads(out.read_text(encoding="utf-8"))["generations"]
    assert all(row["cold_total_ms"] > 0 and row["decode_tokens_per_s"] is None for row in cold)
    assert all(row["costs"]["row_ms"] > 0 for row in cold)
    assert json.loads(out.read_text(encoding="utf-8"))["summary"]["regret"] is None, "exact was missing"


@pytest.mark.usefixtures("tiny_pair")
def test_options_that_make_a_different_run(prompts: Path) -> None:
    def identity(*arguments: str) -> str:
        plan = plan_of(prompts, "--strategies", "cloud,exact", *arguments)
        return digest_of(plan.identity({"versions": {}, "machine": {}}))

    same = identity()
    assert identity("--repeats", "5") == same
    assert identity("--rtt-ms", "0") == same
    changes = ("--rtt-ms=20", "--seed=2", "--temperature=0.5", "--max-new-tokens=9", "--cold", "--first=1")
    others = [identity(change) for change in (*changes, "--strategies=cloud", "--strategies=cloud,edge")]
    assert len({same, *others}) == 1 + len(others)


@pytest.mark.usefixtures("tiny_pair")
def test_a_best_length_is_part_of_the_plan(prompts: Path, tmp_path: Path) -> None:
    rows = [
        {"temperature": 0.0, "rtt_ms": rtt_ms, "family": "sync", "category": category, "best": best}
        for rtt_ms, category, best in (
            (20, "humaneval", 4),
            (200, "humaneval", 16),
            (20, "general", 2),
            (200, "general", 4),
        )
    ]
    peers = tmp_path / "peers.json"
    peers.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    arguments = ("--strategies", "cloud,sync-best", "--peers", str(peers))
    near = plan_of(prompts, *arguments, "--rtt-ms", "30")
    assert near.strategies == {"humaneval": ("cloud", "sync-4"), "general": ("cloud", "sync-2")}
    made = near.keys()
    assert [(prompt, name) for prompt, name, _ in made] == [
        ("one", "cloud"),
        ("one", "sync-4"),
        ("two", "sync-2"),
        ("two", "cloud"),
    ]
    assert plan_of(prompts, *arguments, "--link", "satellite").names == ("cloud", "sync-16", "sync-4")
    with pytest.raises(ConfigError, match="names one twice"):
        plan_of(prompts, "--strategies", "sync-best,sync-4", "--peers", str(peers))


def test_the_first_prompts_of_each_class(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": str(index), "class": "ab"[index % 2], "prompt": "x"} for index in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chosen = plan_of(path, "--strategies", "cloud", "--per-category", "2").prompts
    assert [prompt.id for prompt in chosen] == ["0", "1", "2", "3"]
    assert len(plan_of(path, "--strategies", "cloud", "--per-category", "2", "--first", "3").prompts) == 3


def test_every_strategy_is_first_equally_often() -> None:
    assert [rotated("abc", turns)[0] for turns in range(6)] == list("abcabc")
    assert rotated("abc", 4) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategies", "cloud,pearl-8"), "'pearl-8' is none of"),
        (("--strategies", "cloud,exact,cloud"), "names one twice"),
        (("--strategies", ""), "'' is none of"),
        (("--strategies", "cloud", "--repeats", "0"), "--repeats: 0"),
        (("--strategies", "cloud", "--per-category", "0"), "--per-category: 0"),
        (("--strategies", "cloud", "--max-new-tokens", "-1"), "--max-new-tokens: -1"),
        (("--strategies", "cloud", "--link", "moon"), "'moon' is not known"),
        (("--strategies", "cloud", "--rtt-ms", "-1"), "--rtt-ms: -1"),
        (("--strategies", "cloud,llama-server"), "'llama-server' needs --llama-server and --gguf"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    prompts: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(prompts, *arguments)


def test_ids_must_differ(prompts: Path) -> None:
    prompts.write_text(prompts.read_text(encoding="utf-8").replace("two", "one"), encoding="utf-8")
    with pytest.raises(ConfigError, match="not each with an id of its own"):
        plan_of(prompts, "--strategies", "cloud")


def test_assisted_needs_the_original_weights(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    with pytest.raises(ChaperoneError, match="models pull --pair default --force"):
        plan_of(prompts, "--strategies", "cloud,assisted", "--pair", "default")
