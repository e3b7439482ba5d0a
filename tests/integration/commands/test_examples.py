"""Each example runs as printed, with the tiny pair."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes.target import fake_target
from tests.support.processes.commands import ROOT, environment
from tests.support.processes.servers import serving_in_thread


@pytest.fixture(scope="module")
def config(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a configuration file for the tiny pair, with a cloud that serves it."""
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        path = tmp_path_factory.mktemp("config") / "edge.yaml"
        path.write_text(f"pair: tiny\ncloud:\n  address: {address}\ndevice:\n  threads: 1\n", encoding="utf-8")
        yield path


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("example", "expected"), [("hello.py", ""), ("stream.py", "round trips"), ("batch.py", "What is a round trip?")]
)
def test_an_example_runs(config: Path, example: str, expected: str) -> None:
    done = run_example(example, str(config))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip()) > 10
    assert expected in done.stdout


def test_every_example_is_run_here() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names == {"__init__.py", "hello.py", "stream.py", "batch.py", "demo.py", "demo_table.py"}


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", "--pair", "tiny", *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.usefixtures("tiny_pair")
def test_the_demo_has_a_table_for_each_prompt(tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo.json"
    prompts = ("the list of a number is", "return the value")
    done = run_demo("--max-new-tokens", "12", "--out", str(out), *(f"--prompt={prompt}" for prompt in prompts))
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["benchmark"] == "demo"
    assert written["generations"] == written["prompts"][0]["generations"], "as before there was a second prompt"
    assert [entry["prompt"] for entry in written["prompts"]] == [*prompts]
    for entry in written["prompts"]:
        generations = entry["generations"]
        assert list(generations) == ["edge", "cloud", "exact", "gated"]
        assert generations["exact"]["token_ids"] == generations["cloud"]["token_ids"], "in float32"
        assert all(f"\n{made['text']}\n" in done.stdout for made in generations.values()), "each text once, and whole"
        cells = entry["table"]["gated"]
        assert cells["equals_cloud"] == (generations["gated"]["token_ids"] == generations["cloud"]["token_ids"])
        assert cells["equals_cloud"] or cells["first_difference"]["reason"] == "deviation"
    assert done.stdout.count("\nmode ") == 2
    assert "Warm-up, not shown" in done.stdout
    assert "\nrequests " in done.stdout


def test_the_demo_takes_at_most_two_prompts() -> None:
    done = run_demo(*["--prompt=a"] * 3)
    assert done.returncode == 2
    assert "--prompt: given 3 times; give it once or twice" in done.stderr
