"""Runs that compare the device models of several pairs with one large model."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kit.digests import digest_of
from benchmarks.measured.run import add_arguments, plan_from
from benchmarks.strategies.other_pairs import has_traces
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from edge_client import EdgeClient, EdgeConfig
from tests.support.processes.commands import ROOT, environment

pytestmark = pytest.mark.timeout(400)  # a pair is made, and a run starts its own processes

STRATEGIES = (
    *("cloud", "exact", "exact@second", "edge", "edge@second", "gated@second", "sync-4", "sync-4@second"),
    *("conditioned", "conditioned@second"),
)
SECOND = """
pairs:
  second:
    edge:
      model: tiny-draft
      licence: Apache-2.0
      weights: {source: tiny, seed: 0, noise: 0.2}
      adapter: tiny
    cloud:
      model: tiny-target
      licence: Apache-2.0
      weights: {source: tiny, seed: 0}
      recipe: {dtype: float32}
      end_of_text: [<|im_end|>, <|endoftext|>]
"""
PROMPTS = {"one": "the list of a number is", "two": "write a letter"}


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [{"id": name, "class": "general", "prompt": text} for name, text in PROMPTS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a $CHAPERONE_HOME with the tiny pair, and a pair of the same large model with more noise in its draft."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_pair, home / "models" / "tiny")
    (home / "models.yaml").write_text(SECOND, encoding="utf-8")
    command = [sys.executable, "-m", "cloud_supervisor.cli", "models", "pull", "--pair", "second"]
    subprocess.run(command, env=environment(CHAPERONE_HOME=str(home)), cwd=ROOT, check=True, capture_output=True)
    return home


@pytest.fixture(scope="module")
def result(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "benchmarks", "run", "--prompts", str(write_prompts(folder)), "--pair", "tiny"]
    command += ["--strategies", ",".join(STRATEGIES), "--rtt-ms", "4", "--max-new-tokens", "24", "--dtype", "float32"]
    command += ["--repeats", "2", "--work", str(folder / "work"), "--out", str(folder / "r.json")]
    done = subprocess.run(
        command,
        env=environment(CHAPERONE_HOME=str(home)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=360,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "r.json").read_text(encoding="utf-8"))


def rows_of(result: Any, strategy: str) -> list[Any]:
    return [row for row in result["generations"] if row["strategy"] == strategy]


def test_each_strategy_has_the_device_model_of_its_pair(
    result: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(home))
    texts = {}
    for name, pair in (("edge", "tiny"), ("edge@second", "second")):
        with_client = alone(EdgeConfig(pair=pair))
        texts[name] = {row["id"]: tuple(row["token_ids"]) for row in rows_of(result, name)}
        assert texts[name] == with_client
    assert texts["edge"] != texts["edge@second"]
    devices = result["settings"]["devices"]
    manifests = {pair: load_manifest(home / "models" / pair / "edge", role="edge") for pair in ("tiny", "second")}
    assert {pair: entry["digest"] for pair, entry in devices.items()} == {
        pair: manifest.digest for pair, manifest in manifests.items()
    }
    assert not devices["second"]["calibrated_gate"], "gated@second decided by the signals' own risks"


def alone(config: EdgeConfig) -> dict[str, tuple[int, ...]]:
    """Return the texts that a device writes by itself, by prompt."""

    async def write() -> dict[str, tuple[int, ...]]:
        async with EdgeClient(config) as client:
            return {
                name: (await client.generate(client.prepare(text), mode="edge", max_new_tokens=24)).token_ids
                for name, text in PROMPTS.items()
            }

    return asyncio.run(write())


def test_no_device_model_changes_an_exact_text(result: Any) -> None:
    summary = result["summary"]
    assert summary["exact_output_equals_cloud"] == {"equal": 16, "of": 16}
    entries = summary["categories"]["all"]
    assert set(entries) == set(STRATEGIES)
    assert entries["exact"]["over_exact"] == entries["cloud"]["over_cloud"] == 1.0
    assert entries["exact@second"]["over_exact"] > 0
    assert set(summary["regret"]["categories"]["all"]["median_ms"]) == {"cloud", "exact", "sync-4"}

    def overridden(name: str) -> int:
        return sum(row["stats"]["overridden_tokens"] for row in rows_of(result, name))

    assert overridden("sync-4") < overridden("sync-4@second"), "its model is the noisier one"


@pytest.mark.parametrize("name", ["conditioned", "conditioned@second"])
def test_a_conditioned_text_asks_once_and_is_timed_from_its_own_warm_start(result: Any, name: str) -> None:
    for row in rows_of(result, name):
        stats = row["stats"]
        assert stats["conditioned_tokens"] == stats["prompt_tokens"] > 0
        assert stats["round_trips"] == 1, "in each repeat"
        assert row["decode_tokens_per_s"] > 0
        assert row["cold_total_ms"] is None
        assert row["link_bytes_down"] > stats["bytes_down"] > 0


# --- The plan ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that plans a run in a $CHAPERONE_HOME with two equal pairs, `tiny` and `second`."""
    for pair in ("tiny", "second"):
        shutil.copytree(tiny_pair, tmp_path / "models" / pair)
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    prompts = write_prompts(tmp_path)

    def make(strategies: str, *arguments: str) -> Any:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        options = ["--prompts", str(prompts), "--pair", "tiny", "--strategies", strategies]
        return plan_from(parser.parse_args([*options, *arguments]))

    return make


def change(home: Path, pair: str, role: str, **fields: Any) -> None:
    path = home / "models" / pair / role / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def test_the_work_file_is_that_of_the_pairs_and_the_setting(plan: Callable[..., Any], tmp_path: Path) -> None:
    def identity(*arguments: str) -> str:
        made = plan("cloud,exact,exact@second", *arguments)
        return digest_of(made.identity({"versions": {}, "machine": {}}))

    before = identity()
    assert identity("--conditioning", "auto") == before
    assert identity("--conditioning", "off") != before
    change(tmp_path, "second", "edge", recipe={"precision": "other"})
    assert identity() != before


PROJECTOR = {"digest": "sha256:" + "0" * 64, "width": 128, "layers": [1]}


def test_a_pair_that_the_service_does_not_fit_is_refused(plan: Callable[..., Any], tmp_path: Path) -> None:
    for role in ("edge", "cloud"):
        change(tmp_path, "second", role, projector=PROJECTOR)
    for strategy in ("exact@second", "gated@second"):
        with pytest.raises(ConfigError, match="reads encodings of sha256:0+, .* give --pair second, or --condit"):
            plan(strategy)
        assert plan(strategy, "--conditioning", "off").names == (strategy,)
    assert plan("edge@second,cloud@second").names == ("edge@second", "cloud@second")
    with pytest.raises(ConfigError, match="service of --pair 'tiny' makes sha256:.*; give --pair second$"):
        plan("conditioned@second", "--conditioning", "off")
    change(tmp_path, "second", "edge", projector=None)
    assert plan("exact@second").names == ("exact@second",)
    with pytest.raises(ConfigError, match="the device model of 'second' reads no encodings"):
        plan("conditioned@second")
    change(tmp_path, "second", "cloud", model="another")
    with pytest.raises(ConfigError, match=r"of 'second' is another \(sha256:.*'tiny' is tiny-target \(sha256:"):
        plan("edge@second")


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        ("exact@secnd", "pair: 'secnd' is not in models.yaml.*known: "),
        ("exact@", "pair: '' is not a name"),
        ("exakt@second", "'exakt' is none of exact, gated, edge, cloud, conditioned, sync-N"),
        ("exact@second,exact@second", "names one twice"),
        ("assisted@second", "assisted has no client of ours; give it without @PAIR"),
    ],
)
def test_unknown_parts_of_a_name_are_refused(plan: Callable[..., Any], strategies: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(strategies)


def test_the_best_length_is_that_of_the_strategy(plan: Callable[..., Any], tmp_path: Path) -> None:
    row = {"temperature": 0.0, "rtt_ms": 20, "family": "sync", "category": "general", "best": 4}
    peers = tmp_path / "peers.json"
    peers.write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    made = plan("sync-best,sync-best@second", "--peers", str(peers))
    assert made.names == ("sync-4", "sync-4@second")
    assert [has_traces(name) for name in (*made.names, "conditioned")] == [True, False, False]
