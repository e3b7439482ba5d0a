"""The folder in which a model arrives, next to its final place, and the lock of its pair.

Files arrive under the name of their SHA-256, so that an interrupted pull goes on where it ended, and never mixes two
files. The model gets its place in one step when all of it has arrived and was checked: a model that is not whole is
never loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TypeVar

from chaperone_common.artefacts.folders import chaperone_home, pair_folder
from chaperone_common.artefacts.manifest import MANIFEST_NAME, ManifestFile, ModelManifest, file_sha256
from chaperone_common.artefacts.placing import is_there, put_in_place, remove, restore
from chaperone_common.errors import ModelError
from chaperone_common.files import PART

_LOCK_POLL_S = 0.2

Result = TypeVar("Result")


class Workplace:
    """The place where the device's model of one pair arrives."""

    def __init__(self, pair: str) -> None:
        """Make nothing yet; raises ConfigError for a malformed name, or if CHAPERONE_HOME cannot be used."""
        self.final = pair_folder(pair, "edge")
        self._models = chaperone_home() / "models"
        self._pair = pair
        self._arriving = self._models / f".pulling-{pair}"
        self._replaced = self._arriving / "replaced"  # the old model, for a moment

    def has_any(self) -> bool:
        """Return whether there is a model, or a part of one; raises ModelError."""
        with _as_model_errors(self.final):
            return is_there(self.final) or is_there(self._arriving)

    @asynccontextmanager
    async def locked(self, say: Callable[[str], None]) -> AsyncIterator[None]:
        """Hold the pair's lock; wait while another pull holds it. The operating system drops it with the process."""
        with _as_model_errors(self._models):
            self._models.mkdir(parents=True, exist_ok=True)
            file = (self._models / f".{self._pair}.lock").open("wb")  # the lock of `chaperone-cloud models pull`, too
        with file:
            waited = False
            while not _lock(file, self._models):
                if not waited:
                    say(f"{self._pair}: another pull is at work; waiting for it")
                waited = True
                await asyncio.sleep(_LOCK_POLL_S)
            yield

    def begin(self, manifest: ModelManifest) -> None:
        """Make the folder; drop parts that this manifest does not name. Raises ModelError if the disk is too small.

        A model that a pull had moved away when its process died gets its place back.
        """
        with _as_model_errors(self._arriving):
            self._arriving.mkdir(exist_ok=True)
            if self._arriving.is_symlink():
                raise ModelError(f"{self._arriving}: it is a symbolic link; remove it")
            restore(self.final, self._replaced)
            wanted = {self.part(file).name for file in manifest.files.values()}
            for path in self._arriving.iterdir():
                if path.name not in wanted:
                    remove(path)
            needed = sum(file.bytes - self.arrived(file) for file in manifest.files.values())
            free = shutil.disk_usage(self._arriving).free
        if needed > free:
            raise ModelError(
                f"{self._models}: {megabytes(needed)} more are needed, and {megabytes(free)} are free; make room, or "
                "set CHAPERONE_HOME to a folder on another disk"
            )

    def part(self, expected: ManifestFile) -> Path:
        """Return the path at which a file arrives."""
        return self._arriving / f"{expected.sha256}{PART}"

    def arrived(self, expected: ManifestFile) -> int:
        """Return how many bytes of a file have arrived; a part that is too long is dropped."""
        part = self.part(expected)
        with _as_model_errors(part):
            if not part.exists():
                return 0
            if (size := part.stat().st_size) > expected.bytes:
                part.unlink()
                return 0
            return size

    @asynccontextmanager
    async def appending(self, expected: ManifestFile) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
        """Yield a function that appends to the part of a file. Raises ModelError, and keeps what has arrived."""
        part = self.part(expected)
        with _as_model_errors(part):
            descriptor = os.open(part, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "ab", buffering=0) as file:

            def write(block: bytes) -> None:
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]

            async def append(block: bytes) -> None:
                with _as_model_errors(part):
                    await in_thread(lambda: write(block))

            yield append
            with _as_model_errors(part):
                await in_thread(lambda: os.fsync(file.fileno()))

    def holds(self, expected: ManifestFile) -> bool:
        """Return whether a file has arrived with the right checksum; drop a whole part that has another one."""
        part = self.part(expected)
        with _as_model_errors(part):
            if file_sha256(part) == expected.sha256:
                return True
            part.unlink()
            return False

    def take(self, name: str, expected: ManifestFile) -> bool:
        """Copy a file of the model that is here, if it is the same; return whether it was."""
        old, part = self.final / name, self.part(expected)
        try:
            if old.is_symlink() or old.stat().st_size != expected.bytes or file_sha256(old) != expected.sha256:
                return False
            part.unlink(missing_ok=True)
            shutil.copyfile(old, part)
        except OSError:
            return False
        return True

    def finish(self, manifest: ModelManifest, content: bytes) -> None:
        """Put the model in its place. A process that has files of the old one open keeps them.

        Raises ModelError, and then the old model is in its place again, and what has arrived is kept.
        """
        with _as_model_errors(self.final):
            whole, placed = self._arriving / "edge", dict[str, Path]()
            whole.mkdir(mode=0o755)
            for name, expected in manifest.files.items():
                twin = placed.setdefault(expected.sha256, whole / name)
                if twin == whole / name:
                    _link(self.part(expected), twin)
                else:
                    shutil.copyfile(twin, whole / name)
            (whole / MANIFEST_NAME).write_bytes(content)
            self.final.parent.mkdir(exist_ok=True)
            put_in_place(whole, self.final, self._replaced)
        with contextlib.suppress(ModelError):
            self.clear()

    def clear(self) -> bool:
        """Remove what has arrived; return whether there was any. Raises ModelError."""
        with _as_model_errors(self._arriving):
            return remove(self._arriving)

    def remove_all(self) -> bool:
        """Remove the device's model and all that has arrived; return whether there was any. Raises ModelError.

        The cloud's model stays. The device's leaves its place in one step, so that no half of it is ever there.
        """
        arrived = self.clear()
        with _as_model_errors(self.final):
            if there := is_there(self.final):
                self._arriving.mkdir()
                self.final.replace(self._arriving / "removed")
        self.clear()
        with contextlib.suppress(OSError):
            self.final.parent.rmdir()  # unless the large model is here, too
        return there or arrived


def megabytes(size: int) -> str:
    """Return a size for people."""
    return f"{size / 1e6:.1f} MB"


async def in_thread(work: Callable[[], Result]) -> Result:
    """Do work in a thread, and end with it: a caller that is cancelled waits, so that no thread has its files."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait((working,))
        raise


def _lock(file: IO[bytes], models: Path) -> bool:
    """Return whether the lock is held now. Raises ModelError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # such as of a network file system
        raise ModelError(
            f"{models}: cannot be locked: {error.strerror or error}; set CHAPERONE_HOME to a folder on a local disk"
        ) from None
    return True


def _link(part: Path, file: Path) -> None:
    """Give a part its name in the model, and keep it as a part, too, where the file system has links."""
    try:
        os.link(part, file, follow_symlinks=False)
    except OSError:
        part.replace(file)


@contextmanager
def _as_model_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into ModelErrors that name the path and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "make room, and run the same command again: what has arrived is kept"
        else:
            remedy = "CHAPERONE_HOME names another folder"
        raise ModelError(f"{path}: cannot be written: {reason}; {remedy}") from None
