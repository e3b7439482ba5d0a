"""Finished generations of a run that may be interrupted: a file that grows line by line.

The file's name is a digest of everything that a generation's measurement depends on: the request (link, sampling,
length, warm or cold), the prompts, the strategies, all models' files, the source that runs, the libraries and the
machine. Strategies count because they are interleaved: one that is added later would run in another state of the
machine.

Repeats do not count. Further ones are interleaved among themselves and extend a run. The commit does not count either:
it changes with files that do not run, and stays the same when a file is edited.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Key = tuple[str, str, int]


class WorkFile:
    """Rows by prompt, strategy and repeat; a last line that an interruption has cut is dropped."""

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
        """Write a row to the disk before returning."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[key_of(row)] = row

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Return the keys without a row, in order."""
        return [key for key in keys if key not in self.rows]


def key_of(row: Mapping[str, Any]) -> Key:
    """Return the name of a generation within a run."""
    return row["id"], row["strategy"], row["repeat"]
