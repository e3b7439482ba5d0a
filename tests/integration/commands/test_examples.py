"""Each example runs as printed, with the tiny pair."""

from __future__ import annotations

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


def test_every_example_is_run_here_or_by_make_demo() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names == {"__init__.py", "hello.py", "stream.py", "batch.py", "demo.py"}
