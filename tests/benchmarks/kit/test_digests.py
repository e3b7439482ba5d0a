"""Digests: equal for equal parts, and covering exactly the source that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kit.digests import PRODUCT, digest_of, digest_of_source, files_of
from tests.support.processes.commands import ROOT

SOURCE = {
    "benchmarks/__init__.py": "",
    "benchmarks/kit/__init__.py": "",
    "benchmarks/kit/prompts.py": "",
    "benchmarks/measured/__init__.py": "",
    "benchmarks/measured/run.py": "from benchmarks.measured import plan\nSERVER = ['-m', 'benchmarks.measured.server']",
    "benchmarks/measured/plan.py": "import json\n\ndef f():\n    from benchmarks.kit.prompts import Prompt",
    "benchmarks/measured/server.py": "",
    "benchmarks/virtual/run.py": "import benchmarks.virtual.peers",
    "benchmarks/virtual/peers.py": "from benchmarks.virtual import run",
    "edge_client/engine.py": "",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a checkout with a few benchmarks."""
    for package in PRODUCT:
        (tmp_path / package).mkdir()
    for name, text in SOURCE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_digest_follows_the_parts_and_not_their_order() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1, "b": [2]}) != digest_of({"a": 1, "b": [3]})


def test_files_cover_all_imports(root: Path) -> None:
    files = {str(path.relative_to(root)) for path in files_of(root, "benchmarks.measured.run")}
    assert files == {name for name in SOURCE if "virtual" not in name and "edge_client" not in name}


def test_a_circle_of_imports_ends(root: Path) -> None:
    names = {path.name for path in files_of(root, "benchmarks.virtual.run")}
    assert names == {"__init__.py", "run.py", "peers.py"}


def test_a_module_without_a_file_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"'benchmarks\.moon' has no file below"):
        files_of(root, "benchmarks.moon")


@pytest.mark.parametrize(
    ("changed", "measured_changes"),
    [
        ("benchmarks/kit/prompts.py", True),
        ("benchmarks/measured/server.py", True),
        ("benchmarks/kit/__init__.py", True),
        ("edge_client/engine.py", True),
        ("benchmarks/virtual/peers.py", False),
    ],
)
def test_source_counts_for_the_benchmarks_that_run_it(root: Path, changed: str, measured_changes: bool) -> None:
    before = digest_of_source(root, "benchmarks.measured.run")
    (root / changed).write_text("CHANGED = True\n")
    assert (digest_of_source(root, "benchmarks.measured.run") != before) == measured_changes


def test_a_run_covers_the_processes_that_it_starts() -> None:
    names = {str(path.relative_to(ROOT / "benchmarks")) for path in files_of(ROOT, "benchmarks.measured.generations")}
    assert {
        "measured/generations.py",
        "measured/runners.py",
        "measured/assisted.py",
        "measured/link_process.py",
        "strategies/families.py",
        "strategies/inexact.py",
        "strategies/lenient_server.py",
        "kit/processes.py",
    } <= names
    assert not {name for name in names if name.startswith(("virtual", "report", "quality", "fleet"))}
    assert "measured/summary.py" not in names, "a summary is repeated from the same generations"
