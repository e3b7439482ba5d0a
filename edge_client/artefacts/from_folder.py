"""A model in a folder of this machine, such as a copy or a mounted disk."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from chaperone_common.artefacts.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ManifestFile
from chaperone_common.errors import ModelError, ModelMissing

_BLOCK_BYTES = 1 << 20


class FolderSource:
    """The `Source` port over a folder with a manifest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def place(self) -> str:
        return str(self._folder)

    async def manifest(self) -> bytes:
        path = self._folder / MANIFEST_NAME
        with _opened(path) as file, _as_model_errors(path):
            return await asyncio.to_thread(file.read, MAX_MANIFEST_BYTES + 1)

    async def read(self, name: str, expected: ManifestFile, offset: int) -> AsyncGenerator[bytes, None]:
        path = self._folder / name
        with _opened(path) as file:
            with _as_model_errors(path):
                file.seek(offset)
            while block := await _read(file, path):
                yield block

    async def close(self) -> None:
        pass


async def _read(file: BinaryIO, path: Path) -> bytes:
    with _as_model_errors(path):
        return await asyncio.to_thread(file.read, _BLOCK_BYTES)


@contextmanager
def _as_model_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None


def _opened(path: Path) -> BinaryIO:
    """Open a regular file, and follow no link: it could lead to a file that the folder does not hold."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelMissing(
            f"{path}: there is no such file; give the folder `edge` of a pulled pair, with its manifest.json"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ModelError(f"{path}: it is a symbolic link; put the file itself there") from None
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{path}: it is not a regular file; put the file itself there")
    return os.fdopen(descriptor, "rb")
