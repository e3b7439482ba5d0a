"""The border to the disk and to the libraries that convert models: all of their errors become ModelError."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaperone_common.errors import ChaperoneError, ModelError

_LOG = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOG_TAIL_LINES = 4
_LONGEST = 300  # characters shown of a message of a library


@contextmanager
def as_model_errors(what: str, home: Path) -> Iterator[None]:
    """Turn every foreign error in the block into a ModelError with a message of one line.

    The message begins with `what`, the step that failed. If the disk is the reason, it names the folder `home`.
    """
    try:
        yield
    except (BrokenPipeError, ChaperoneError):  # a pipe belongs to the reader of our output, and not to the libraries
        raise
    except Exception as error:
        _LOG.debug("%s", what, exc_info=True)
        raise ModelError(_message(error, what, home)) from None


def disk_problem(text: str) -> int | None:
    """Return the `errno` that a message of a library mentions, if it is a problem of the disk."""
    for number in (*_FULL, errno.EROFS):
        if re.search(rf"{re.escape(os.strerror(number))}|\bos error {number}\b", text):
            return number
    return None


def disk_message(number: int, path: Path | str) -> str:
    """Return the message for a problem of the disk, with its remedy."""
    reason = os.strerror(number)
    if number in _FULL:
        return f"{path}: no room to write: {reason}; free some, or set CHAPERONE_HOME to a folder with more"
    return f"{path}: cannot be written: {reason}; set CHAPERONE_HOME to a folder of yours"


def reason_in(log: str, returncode: int, scratch: Path) -> str:
    """Return the last lines of a log, without the traceback and without paths of temporary folders."""
    if returncode < 0:
        return f"it was ended by {signal.Signals(-returncode).name}, which a lack of memory may cause"
    lines = [line for line in log.splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if line.startswith((" ", "Traceback (most recent call last)"))]
    if frames and frames[-1] + 1 < len(lines):
        lines = lines[frames[-1] + 1 :]
    words = " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:])
    words = re.sub(re.escape(str(scratch)) + r"[\w/.-]*", "the model", words)
    return words or f"it said nothing, exit code {returncode}"


def first_line(text: str) -> str:
    """Return the first line of a library's message, shortened."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _message(error: Exception, what: str, home: Path) -> str:
    if isinstance(error, MemoryError):
        return f"{what}: not enough memory"
    if (number := disk_problem(str(error))) is not None and not isinstance(error, OSError):
        return disk_message(number, home)
    if isinstance(error, OSError) and error.errno is not None:
        named = isinstance(error.filename, str | bytes)
        path = Path(os.fsdecode(error.filename)) if named else home if error.errno in _FULL else None
        if path is not None and (path.is_relative_to(home) or home.is_relative_to(path)):
            return disk_message(error.errno, home)  # the path of a temporary file does not help a reader
        return f"{what}: {path}: {os.strerror(error.errno)}" if path else f"{what}: {first_line(str(error))}"
    return f"{what}: {type(error).__name__}: {first_line(str(error))}"
