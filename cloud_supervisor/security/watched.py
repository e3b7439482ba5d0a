"""Values that are loaded from files, and loaded again when the files change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.errors import ConfigError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_EVERY_S = 1.0

_Signature = tuple[tuple[int, int, int] | None, ...]


class Watched(Generic[T]):
    """A value loaded from files. Any thread may ask for it.

    A change is noticed by modification time, size and inode, within `look_every_s`. If the changed files cannot be
    used, the value before stays in use, and the problem is logged once.
    """

    def __init__(
        self,
        load: Callable[[], T],
        files: Sequence[Path],
        clock: Clock | None = None,
        *,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """Load the value; raises the ConfigError of `load`."""
        self._load = load
        self._files = tuple(files)
        self._clock = clock or MonotonicClock()
        self._look_every_s = look_every_s
        self._lock = threading.Lock()
        self._looked_at = self._clock.now()
        self._signature = self._look()
        self._current = load(), 0  # in one, so that a thread never sees a value with the version of another

    @property
    def version(self) -> int:
        """A number that grows with each value."""
        return self._current[1]

    @property
    def value(self) -> T:
        """The newest value that can be used."""
        return self.current[0]

    @property
    def current(self) -> tuple[T, int]:
        """The newest value that can be used, and its version."""
        # Another thread that looks just now is enough: a handshake never waits for it.
        if self._clock.now() - self._looked_at >= self._look_every_s and self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return self._current

    def _refresh(self) -> None:
        self._looked_at = self._clock.now()
        signature = self._look()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._current = self._load(), self._current[1] + 1
        except ConfigError as error:
            _LOG.error("%s; what was loaded before stays in use", error.message)
        else:
            _LOG.info("loaded again: %s", ", ".join(map(str, self._files)))

    def _look(self) -> _Signature:
        return tuple(_signature(path) for path in self._files)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
