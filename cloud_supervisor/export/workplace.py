"""The folder in which a pair is built, next to its final place, and its lock.

A finished folder gets its place in one step, and leaves it in one step: no half of a model is ever loaded. After a
command that died, the next one gives an old model its place back, and removes the rest. The operating system drops the
lock with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chaperone_common.artefacts.placing import is_there, put_in_place, remove, restore

if TYPE_CHECKING:
    from cloud_supervisor.export.patience import Say

# The prefixes of folders next to the final places.
_BUILDING = "building"
_REPLACED = "replaced"  # a whole model, which a new one replaces in this moment
_REMOVED = "removed"  # no model any more


class Workplace:
    """The folder of all pairs during the pull or the removal of one pair."""

    def __init__(self, models: Path, pair: str) -> None:
        self.final = models / pair
        self._models = models
        self._pair = pair

    @contextmanager
    def locked(self, say: Say) -> Iterator[None]:
        """Hold the pair's lock, and clear up after those that died. Wait if another one holds it. Raises OSError."""
        self._models.mkdir(parents=True, exist_ok=True)
        with self._lock.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{self._pair}: another pull is at work; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            self._clear_up()
            yield

    def tidy(self) -> None:
        """Clear up after those that died, unless another one is at work or the folder is read-only."""
        if self._leftovers():
            with contextlib.suppress(OSError), self._locked_at_once():
                self._clear_up()

    def restore(self) -> None:
        """Give a model that was moved away its place back, unless another one is at work or the folder is read-only."""
        if self._leftovers(_REPLACED):
            with contextlib.suppress(OSError), self._locked_at_once():
                self._restore()

    @contextmanager
    def building(self) -> Iterator[Path]:
        """Yield a new folder, and move it to the final place if the block succeeds."""
        folder, aside = self._new_path(_BUILDING), self._new_path(_REPLACED)
        folder.mkdir(0o700)
        try:
            yield folder
            folder.chmod(0o755)  # whatever the umask is: a service may have an account of its own
            put_in_place(folder, self.final, aside)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if is_there(aside):
            with contextlib.suppress(OSError):  # the next command removes it
                self._discard(aside)

    def has_any(self) -> bool:
        """Return whether there are models of the pair, or leftovers of them."""
        return is_there(self.final) or bool(self._leftovers())

    def remove(self) -> None:
        """Remove the models of the pair from their place, and then from the disk. Raises OSError."""
        if is_there(self.final):
            self._discard(self.final)

    @contextmanager
    def _locked_at_once(self) -> Iterator[None]:
        """Hold the pair's lock. Raises OSError if another one holds it."""
        with self._lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    @property
    def _lock(self) -> Path:
        return self._models / f".{self._pair}.lock"

    def _new_path(self, kind: str) -> Path:
        return self._models / f"{self._prefix(kind)}{uuid.uuid4().hex}"

    def _prefix(self, kind: str) -> str:
        return f".{kind}-{self._pair}."  # the name of a pair has no dot, so this is no prefix of another pair

    def _leftovers(self, *kinds: str) -> list[Path]:
        prefixes = tuple(self._prefix(kind) for kind in kinds or (_BUILDING, _REPLACED, _REMOVED))
        with contextlib.suppress(OSError):
            return sorted(path for path in self._models.iterdir() if path.name.startswith(prefixes))
        return []

    def _clear_up(self) -> None:
        """Give a model that was moved away its place back, and remove all other leftovers."""
        self._restore()
        for leftover in self._leftovers():
            with contextlib.suppress(OSError):
                self._discard(leftover)

    def _restore(self) -> None:
        for replaced in self._leftovers(_REPLACED):
            restore(self.final, replaced)

    def _discard(self, path: Path) -> None:
        """Remove a folder. It is renamed first, so that a half of it is never taken for a model. Raises OSError."""
        removed = self._new_path(_REMOVED)
        path.replace(removed)
        remove(removed)
