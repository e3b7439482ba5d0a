"""The fuzz targets hold for the committed corpus, and for a bounded search from it; `make fuzz` searches for longer."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import cloud_session, frame_decoder
from tests.fuzz.corpus import CORPUS, files

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = {"cloud_session": cloud_session.check, "frame_decoder": frame_decoder.check}


def test_the_corpus_is_the_one_that_its_script_makes() -> None:
    committed = {str(path.relative_to(CORPUS)): path.read_bytes() for path in CORPUS.rglob("*.bin")}
    made = {name: data for name, data in committed.items() if not Path(name).name.startswith("found-")}
    assert made == files(), "run `python -m tests.fuzz.corpus`"
    assert sum(map(len, committed.values())) < 100_000


@pytest.mark.parametrize("path", sorted(CORPUS.rglob("*.bin")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_input_of_the_corpus_holds(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_a_bounded_search_finds_nothing(target: str, tmp_path: Path) -> None:
    """In a process of its own, since libFuzzer takes over the one that it runs in."""
    if importlib.util.find_spec("atheris") is None:
        version = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        pytest.skip(
            f"atheris is not installed: it has wheels for Python 3.11 to 3.13 on Linux x86-64, this is {version}"
        )
    grown = tmp_path / "grown"
    grown.mkdir()
    flags = ["-runs=20000", "-max_total_time=10", "-seed=1", "-max_len=600", f"-artifact_prefix={tmp_path}/"]
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, *flags, str(grown), str(CORPUS / target)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'common'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    report = run.stdout + run.stderr
    assert run.returncode == 0, f"{report}\n{[path.read_bytes() for path in tmp_path.glob('crash-*')]}"
    assert "INITED" in report, "the corpus was read"
    assert "Done " in report, "the search ran to its bound"
