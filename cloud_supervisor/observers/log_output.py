"""The log of a server: records of the standard library's `logging`, written by a thread that nobody waits for."""

from __future__ import annotations

import copy
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Literal, TextIO

import structlog

from chaperone_common.command.console import visible
from chaperone_common.errors import trace_of

MAX_WAITING = 1024  # records
MAX_CHARACTERS = 4096  # of a record's text
_LAST_LINES_S = 1.0

Event = MutableMapping[str, Any]


class QueuedHandler(logging.Handler):
    """Hands records to a thread that writes them. It drops and counts those that find the queue full."""

    def __init__(self, write: Callable[[bytes], None], *, max_waiting: int = MAX_WAITING) -> None:
        """Call `write` with one line at a time; it may block for ever, and may raise OSError."""
        super().__init__()
        self._refused = 0  # by a full queue
        self._unwritten = 0
        self._write = write
        self._max_waiting = max_waiting
        # Garbage collection may log in the middle of a `put`: only SimpleQueue allows that.
        self._waiting: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that nobody will read."""
        return self._refused + self._unwritten

    def emit(self, record: logging.LogRecord) -> None:
        if self._waiting.qsize() >= self._max_waiting:
            self._refused += 1
            return
        try:
            self._waiting.put(_frozen(record))
        except Exception:  # its arguments do not fit its message
            self._refused += 1

    def close(self) -> None:
        """Wait a moment until the waiting records are written."""
        super().close()
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(_LAST_LINES_S)

    def _run(self) -> None:
        reported = 0
        while (record := self._waiting.get()) is not None:
            if not self._written(record):
                self._unwritten += 1
            elif self._waiting.qsize() < self._max_waiting // 2:
                reported = self._report(reported)
        self._report(reported)

    def _report(self, reported: int) -> int:
        """Write how many more records were dropped than were reported before; return the number reported now."""
        if (dropped := self.dropped) == reported:
            return reported
        message = f"{dropped - reported} log records were dropped, because nobody read the log"
        line = logging.LogRecord(__name__, logging.WARNING, "", 0, message, None, None)
        return dropped if self._written(line) else reported

    def _written(self, record: logging.LogRecord) -> bool:
        try:
            self._write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:  # nobody reads the log any more, or a record cannot be formatted
            return False
        return True


def dropped_records() -> int:
    """Return how many records the log of this process has dropped."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, QueuedHandler))


@contextmanager
def log_output(style: Literal["console", "json"], stream: TextIO | None = None) -> Iterator[None]:
    """Within the block write the log to a stream, standard error by default, in place of the handlers of a terminal.

    Neither loggers nor levels change. Warnings of Python become records as well.
    """
    stream = stream or sys.stderr
    handler = QueuedHandler(_writer(stream))
    handler.setFormatter(_formatter(style, colours=stream.isatty() and not os.environ.get("NO_COLOR")))
    root = logging.getLogger()
    replaced = [other for other in root.handlers if type(other) is logging.StreamHandler]
    for other in replaced:
        root.removeHandler(other)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        for other in replaced:
            root.addHandler(other)
        handler.close()


def _writer(stream: TextIO) -> Callable[[bytes], None]:
    """Return a function that writes past the stream's buffer: Python locks that at exit, and a stuck thread has it."""
    try:
        descriptor = stream.fileno()
    except OSError:  # it is no file, in a test
        return lambda line: print(line.decode(), end="", file=stream)

    def write(line: bytes) -> None:
        while line:
            try:
                line = line[os.write(descriptor, line) :]
            except BlockingIOError:  # a program that shares it has made it non-blocking
                select.select((), (descriptor,), ())

    return write


def _frozen(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy with its final text, and with the place of an error in place of the error.

    asyncio's warnings and errors show objects of the program, and with them the messages of errors. Only its own words
    are kept of them.
    """
    kept = copy.copy(record)
    kept.__dict__.pop("message", None)  # another handler may have left the whole text here
    own_words = record.name == "asyncio" and record.levelno > logging.DEBUG
    text = str(record.msg).partition("\n")[0] if own_words else record.getMessage()
    if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
        text = f"{text}: {trace_of(record.exc_info[1])}"
    kept.msg = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
    kept.args = kept.exc_info = kept.exc_text = kept.stack_info = None
    return kept


def _formatter(style: Literal["console", "json"], *, colours: bool) -> logging.Formatter:
    renderer = structlog.processors.JSONRenderer() if style == "json" else structlog.dev.ConsoleRenderer(colors=colours)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            _with_time,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _without_ray,
            _on_one_line,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )


def _with_time(_: Any, __: str, event: Event) -> Event:
    created = datetime.fromtimestamp(event["_record"].created, UTC)
    event["timestamp"] = created.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _without_ray(_: Any, __: str, event: Event) -> Event:
    """Leave out the second time that Ray gives each record in the processes that it starts."""
    event.pop("_ray_timestamp_ns", None)
    return event


def _on_one_line(_: Any, __: str, event: Event) -> Event:
    """Make line ends and control characters visible, so that no value can pass for another record."""
    return {
        key: visible(value).replace("\n", "\\n") if isinstance(value, str) else value for key, value in event.items()
    }
