"""Code written by a model is confined to passing or failing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.sandbox import run_python


def test_code_that_ends_without_an_error_passes() -> None:
    outcome = run_python("import math\nassert math.gcd(12, 18) == 6\n")
    assert outcome.passed
    assert outcome.reason == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "it left before its end"),
        ("import os; os._exit(0)", "it left before its end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
        ("x = bytearray(2**31)", "MemoryError"),
        ("open('big', 'wb').write(bytes(2**21))", "File too large"),
        ("import os; assert 'HOME' in os.environ", "AssertionError"),
    ],
)
def test_code_that_fails_is_reported_with_its_reason(source: str, reason: str) -> None:
    outcome = run_python(source)
    assert not outcome.passed
    assert reason in outcome.reason


def test_endless_code_is_killed_with_its_children() -> None:
    outcome = run_python("import os\nos.fork()\nwhile True: pass\n", timeout_s=1.0)
    assert not outcome.passed
    assert outcome.reason == "no end within 1 s"


def test_code_runs_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_python("import os\nassert os.listdir() == []\nopen('here', 'w').close()\n").passed
    assert [*tmp_path.iterdir()] == []


def test_script_only_code_does_not_run() -> None:
    assert run_python("if __name__ == '__main__':\n    raise ValueError\n").passed
