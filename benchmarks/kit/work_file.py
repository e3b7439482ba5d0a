"""Finished generations of a run that may be interrupted: a file that grows line by line.

Its name is a digest of all that a generation's measurement depends on: what was asked (link, sampling, length, warm or
cold), the prompts and the strategies (they are interleaved, so that one added later would meet another machine), both
models' files, the source of all that runs, the libraries and the machine. Repeats are not in it: more of them are
interleaved among themselves, and extend a run. Nor is the commit: it changes with files that do not run, and does not
change with what is not committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Key = tuple[str, str, int]


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
