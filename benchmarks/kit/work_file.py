"""Finished generations of a run that may be interrupted: a file that grows line by line.

Its name is a digest of all that a generation's measurement depends on: what was asked (link, sampling, length, warm or
cold), the prompts and the strategies (they are interleaved, so that one added later would meet another machine), both
models' files, the source of all that runs, the libraries and the machine. Repeats are not in it: more of them are
interleaved among themselves, and extend a run. Nor is the commit: it changes with files that do not run, and does not
change with what is not committed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MEASURED = ("common", "edge_client", "cloud_supervisor", "link_emulator")
MEASURING = (
    *("run_plan.py", "runner.py", "contenders.py", "strategies.py", "assisted.py", "link_process.py", "processes.py"),
    *("inexact.py", "lenient_server.py"),
)

Key = tuple[str, str, int]


def digest_of(parts: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of anything that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_source(root: Path, measuring: Iterable[str] = MEASURING) -> str:
    """Of all our code that runs in a measurement; `measuring` are those of our own folder, of a run's if not given."""
    files = [path for package in MEASURED for path in (root / package).glob("**/*.py")]
    return digest_of_files([*files, *(root / "benchmarks" / name for name in measuring)], root)


def digest_of_files(paths: Iterable[Path], root: Path) -> str:
    """Of names, relative to a folder, and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class WorkFile:
    """Rows by prompt, strategy and repeat; one that was cut in the middle of a line goes on before it."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        if fresh:
            path.unlink(missing_ok=True)
        self.rows: dict[Key, dict[str, Any]] = {}
        if path.exists():
            text = path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            self.rows = {key_of(row): row for row in map(json.loads, whole.splitlines())}
            if whole != text:
                path.write_bytes(whole)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, on the disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[key_of(row)] = row

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those that are still to be measured, in order."""
        return [key for key in keys if key not in self.rows]


def key_of(row: Mapping[str, Any]) -> Key:
    """What names a generation within a run."""
    return row["id"], row["strategy"], row["repeat"]
