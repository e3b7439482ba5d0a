"""A source of prompts: a file, a pipe or standard input, read line by line within bounds."""

from __future__ import annotations

import asyncio
import os
import queue
import stat
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from types import TracebackType

from chaperone_common.errors import InvalidRequest

STANDARD = "-"  # the name of standard input, or output
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_SKIPPED_BYTES = 16 * MAX_LINE_BYTES  # of a line that is too long, before its end is no longer sought
_BLOCK_BYTES = 64 * 1024


class PromptFile:
    """An open source of lines. Only a regular file has a known number of lines.

    Raises InvalidRequest, which names the flag, if the source cannot be opened or read.
    """

    def __init__(self, name: str, *, flag: str = "--prompts") -> None:
        self.name = name
        self._flag = flag
        try:
            self._descriptor = _standard_input() if name == STANDARD else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            self.status = os.fstat(self._descriptor)
        except OSError as error:
            raise self._failure(error) from None
        if stat.S_ISDIR(self.status.st_mode):
            os.close(self._descriptor)
            raise InvalidRequest(f"{flag}: {name} is a folder; give a file")
        self.is_regular = stat.S_ISREG(self.status.st_mode)
        self._reading = False

    def count(self) -> int | None:
        """Return the number of lines that are not blank, or None for a pipe; the lines can still be read."""
        if not self.is_regular:
            return None
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        lines = sum(1 for line in self if line.strip())
        os.lseek(self._descriptor, start, os.SEEK_SET)
        return lines

    def __iter__(self) -> Iterator[bytes]:
        """Yield lines with their ends. A line longer than MAX_LINE_BYTES is cut one byte after that."""
        return split_lines(self.read)

    def read(self, size: int = _BLOCK_BYTES) -> bytes:
        """Return up to `size` bytes; none at the end."""
        try:
            return os.read(self._descriptor, size)
        except OSError as error:
            raise self._failure(error) from None

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Yield lines as they arrive, without blocking the event loop.

        The reading thread is a daemon without locks. It may wait for a silent pipe, and then delays neither Ctrl-C
        nor the end of the process.
        """
        loop = asyncio.get_running_loop()
        wanted: queue.SimpleQueue[asyncio.Future[bytes | None] | None] = queue.SimpleQueue()

        def feed() -> None:
            lines = iter(self)
            while (future := wanted.get()) is not None:
                answer = _answer(lines)
                with suppress(RuntimeError):  # the loop is closed, and nothing waits for the line
                    loop.call_soon_threadsafe(_deliver, future, answer)
            self._reading = False

        self._reading = True
        threading.Thread(target=feed, name="chaperone-prompts", daemon=True).start()
        try:
            while True:
                future: asyncio.Future[bytes | None] = loop.create_future()
                wanted.put(future)
                line = await future
                if line is None:
                    return
                yield line
        finally:
            wanted.put(None)

    def close(self) -> None:
        """Close the file, unless a thread still waits for it."""
        if not self._reading:
            os.close(self._descriptor)

    def __enter__(self) -> PromptFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _failure(self, error: OSError) -> InvalidRequest:
        what = "standard input" if self.name == STANDARD else self.name
        return InvalidRequest(f"{self._flag}: {what}: {error.strerror or error}")


def split_lines(read: Callable[[], bytes]) -> Iterator[bytes]:
    """Cut blocks into lines. A line longer than MAX_LINE_BYTES is cut one byte after that.

    Raises InvalidRequest for a line that does not end within MAX_SKIPPED_BYTES: /dev/zero has no lines.
    """
    pending, length = bytearray(), 0
    while block := read():
        *ended, rest = block.split(b"\n")
        for part in ended:
            _extend(pending, part)
            yield bytes(pending) + b"\n"
            pending.clear()
        _extend(pending, rest)
        length = len(rest) if ended else length + len(rest)
        if length > MAX_SKIPPED_BYTES:
            raise InvalidRequest(f"--prompts: a line has no end within {MAX_SKIPPED_BYTES} bytes; give a text file")
    if pending:
        yield bytes(pending)


def _extend(line: bytearray, part: bytes) -> None:
    line += part[: MAX_LINE_BYTES + 1 - len(line)]


def read_prompt() -> str:
    """Return all of standard input as one prompt; raises InvalidRequest."""
    try:
        if sys.stdin is None:
            raise InvalidRequest("prompt: standard input is closed; give a prompt")
        content = sys.stdin.buffer.read(MAX_LINE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"prompt: standard input: {error.strerror or error}") from None
    if len(content) > MAX_LINE_BYTES:
        raise InvalidRequest(f"prompt: standard input has more than {MAX_LINE_BYTES} bytes; shorten it")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"prompt: byte {error.start} of standard input is not UTF-8") from None


def _standard_input() -> int:
    """Return a new descriptor for standard input; raises OSError if it is closed."""
    if sys.stdin is None:
        raise OSError(None, "it is closed; give a prompt or a file")
    return os.dup(sys.stdin.fileno())


def _answer(lines: Iterator[bytes]) -> bytes | InvalidRequest | None:
    try:
        return next(lines, None)
    except InvalidRequest as error:
        return error


def _deliver(future: asyncio.Future[bytes | None], answer: bytes | InvalidRequest | None) -> None:
    if future.done():  # cancelled
        return
    if isinstance(answer, InvalidRequest):
        future.set_exception(answer)
    else:
        future.set_result(answer)
