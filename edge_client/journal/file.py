"""The file of the journal: lines of bytes, for one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chaperone_common.errors import ConfigError, OutputLost
from chaperone_common.files import PART, replace_file

LOCK = ".lock"  # suffix of the file that is locked; the journal itself is replaced from time to time
_OWNER_ONLY = 0o600


class JournalFile:
    """A file of lines that only its owner can read.

    A line is on the disk when `append` or `replace` returns. Both raise OutputLost; then `is_damaged` is true until a
    `replace` succeeds. A process that is killed leaves at most half a line at the end.
    """

    def __init__(self, path: Path) -> None:
        """Lock and open the file; make it if there is none. Raises ConfigError."""
        self.path = Path(os.path.realpath(path))
        self.is_damaged = False
        try:
            self._lock = os.open(f"{self.path}{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path.with_name(self.path.name + PART).unlink(missing_ok=True)  # of a process that was killed
            self._descriptor = self._open()
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(
                f"gate.journal_file: {self.path} is in use by another client; close it, or give each client a file of "
                "its own"
            ) from None
        except OSError as error:
            os.close(self._lock)
            raise self._unusable(error) from None

    def read(self) -> list[bytes]:
        """Return all lines with their line feeds; the last one may be torn. Raises ConfigError."""
        try:
            return self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise self._unusable(error) from None

    def append(self, line: bytes) -> None:
        """Add a line."""
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            self.is_damaged = True
            raise OutputLost(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def replace(self, lines: Sequence[bytes]) -> None:
        """Replace all lines. Until that is complete, the old ones stay."""
        self.is_damaged = True
        replace_file(self.path, lines, mode=_OWNER_ONLY)
        try:
            os.close(self._descriptor)
        finally:
            self._descriptor = self._open()
        self.is_damaged = False

    def close(self) -> None:
        """Close the file and release the lock."""
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked process may hold a copy of the descriptor
        for descriptor in (self._descriptor, self._lock):
            with suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _OWNER_ONLY)
        os.fchmod(descriptor, _OWNER_ONLY)  # of a file that was there before
        return descriptor

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"gate.journal_file: {self.path} cannot be used: {error.strerror or error}; name a file that can be "
            "written, in a folder that exists"
        )
