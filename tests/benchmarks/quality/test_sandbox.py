"""Code that a model has written can do little beyond being right or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.sandbox import run_python


def test_code_that_gets_to_its_end_passes() -> None:
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
def test_code_that_does_not_is_reported_with_its_reason(source: str, reason: str) -> None:
    outcome = run_python(source)
    assert not outcome.passed
    assert reason in outcome.reason


def test_code_without_an_end_is_ended_with_what_it_started() -> None:
    outcome = run_python("import os\nos.fork()\nwhile True: pass\n", timeout_s=1.0)
    assert not outcome.passed
    assert outcome.reason == "no end within 1 s"


def test_code_runs_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_python("import os\nassert os.listdir() == []\nopen('here', 'w').close()\n").passed
    assert [*tmp_path.iterdir()] == []


def test_what_is_only_run_as_a_script_is_not_run() -> None:
    assert run_python("if __name__ == '__main__':\n    raise ValueError\n").passed
