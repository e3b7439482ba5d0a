"""The folder in which a pair is built, next to its final place, and its lock.

A finished folder is moved to its place in one step. A pull that dies leaves nothing that can be loaded, and the next
pull removes its folder. The operating system drops the lock with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud_supervisor.export.patience import Say


class Workplace:
    """The folder of all pairs during the pull of one pair."""

    def __init__(self, models: Path, pair: str) -> None:
        self.final = models / pair
        self._models = models
        self._pair = pair

    @contextmanager
    def locked(self, say: Say) -> Iterator[None]:
        """Hold the pair's lock, and remove leftovers. Wait if another pull holds it. Raises OSError."""
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
        """Remove leftovers of killed pulls, unless another pull is at work or the folder is read-only."""
        if not self._leftovers():
            return
        with contextlib.suppress(OSError), self._lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_leftovers()

    @contextmanager
    def building(self) -> Iterator[Path]:
        """Yield a new folder, and move it to the final place if the block succeeds."""
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
        return f".{kind}-{self._pair}."  # the name of a pair has no dot, so this is no prefix of another pair

    def _leftovers(self) -> list[Path]:
        prefixes = (self._prefix("building"), self._prefix("replaced"))
        with contextlib.suppress(OSError):
            return [path for path in self._models.iterdir() if path.name.startswith(prefixes)]
        return []

    def _remove_leftovers(self) -> None:
        for leftover in self._leftovers():
            shutil.rmtree(leftover, ignore_errors=True)

    def _put_in_place(self, folder: Path) -> None:
        """Replace the old folder by the new one. A process that has the old files open keeps them."""
        folder.chmod(0o755)  # only its owner can read a temporary folder
        if self.final.exists():
            replaced = folder.with_name(folder.name.replace(self._prefix("building"), self._prefix("replaced"), 1))
            self.final.replace(replaced)
            folder.replace(self.final)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            folder.replace(self.final)
