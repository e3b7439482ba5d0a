"""Files that are whole or absent: an old file stays until the new one is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from chaperone_common.errors import OutputLost

PART = ".part"  # suffix of a file that is being written


def replace_file(path: Path, blocks: Iterable[bytes], *, mode: int | None = None) -> None:
    """Write a file next to `path` and rename it to `path`.

    The new file gets the permissions of the old one, and its owner where this process may give it. `mode` is for a file
    that did not exist, such as 0o600 for a secret. A symbolic link is followed, and not replaced. Raises OutputLost,
    and then leaves the old file unchanged.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(path.name + PART)
    try:
        try:
            with part.open("wb") as file:
                _set_rights(file.fileno(), path, mode)
                _write(file, blocks)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputLost(f"{path}: cannot be written: {error.strerror or error}") from None


def _set_rights(descriptor: int, path: Path, mode: int | None) -> None:
    """Give the new file its owner and permissions while it is empty, so that a secret is never readable by others."""
    if path.exists():
        old = path.stat()
        with contextlib.suppress(PermissionError):  # only root gives files away
            os.fchown(descriptor, old.st_uid, old.st_gid)
        mode = old.st_mode & 0o777
    if mode is not None:
        os.fchmod(descriptor, mode)


def _write(file: BinaryIO, blocks: Iterable[bytes]) -> None:
    for block in blocks:
        file.write(block)
    file.flush()
    os.fsync(file.fileno())
