"""Files that are whole or absent: an old file stays until the new one is complete."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from chaperone_common.errors import OutputLost

PART = ".part"  # suffix of a file that is being written


def replace_file(path: Path, blocks: Iterable[bytes]) -> None:
    """Write a file next to `path` and rename it to `path`.

    The new file gets the permissions of the old one. A symbolic link is followed, and not replaced. Raises OutputLost,
    and then leaves the old file unchanged.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(path.name + PART)
    try:
        try:
            with part.open("wb") as file:
                _write(file, path, blocks)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputLost(f"{path}: cannot be written: {error.strerror or error}") from None


def _write(file: BinaryIO, path: Path, blocks: Iterable[bytes]) -> None:
    if path.exists():
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
    for block in blocks:
        file.write(block)
    file.flush()
    os.fsync(file.fileno())
