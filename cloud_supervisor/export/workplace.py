"""Where a pair is built and put in place: in a folder of its own beside the final one, under a lock, in one step.

A pull that dies leaves nothing that loads. What it leaves behind, the next one removes. The operating system drops
the lock with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], None]


class Workplace:
    """The folder of all pairs, as seen by a pull of one."""

    def __init__(self, models: Path, pair: str) -> None:
        self.final = models / pair
        self._models = models
        self._pair = pair

    @contextmanager
    def locked(self, say: Say) -> Iterator[None]:
        """Hold the pair's lock, and remove leftovers; wait where another pull holds it. Raise OSError."""
        self._models.mkdir(parents=True, exist_ok=True)
        with self._lock.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{self._pair}: another pull is at work; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            self._remove_leftovers()
            yield

    def tidy(self) -> None:
        """Remove what killed pulls left, unless another pull is at work, or this home is not ours to change."""
        if not self._leftovers():
            return
        with contextlib.suppress(OSError), self._lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_leftovers()

    @contextmanager
    def building(self) -> Iterator[Path]:
        """Give a new folder to build in, and move it to the final place if the block succeeds."""
        folder = Path(tempfile.mkdtemp(prefix=self._prefix("building"), dir=self._models))
        try:
            yield folder
            self._put_in_place(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _lock(self) -> Path:
        return self._models / f".{self._pair}.lock"

    def _prefix(self, kind: str) -> str:
        return f".{kind}-{self._pair}."  # no name of a pair holds a dot, so this is of no other pair

    def _leftovers(self) -> list[Path]:
        prefixes = (self._prefix("building"), self._prefix("replaced"))
        with contextlib.suppress(OSError):
            return [path for path in self._models.iterdir() if path.name.startswith(prefixes)]
        return []

    def _remove_leftovers(self) -> None:
        for leftover in self._leftovers():
            shutil.rmtree(leftover, ignore_errors=True)

    def _put_in_place(self, folder: Path) -> None:
        """Put the new folder in the old one's place; a process that has the old files open keeps them."""
        folder.chmod(0o755)  # a temporary folder is its owner's alone
        if self.final.exists():
            replaced = folder.with_name(folder.name.replace(self._prefix("building"), self._prefix("replaced"), 1))
            self.final.replace(replaced)
            folder.replace(self.final)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            folder.replace(self.final)
