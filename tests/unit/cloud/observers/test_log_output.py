"""The log is written by a thread: a reader that stops costs records, which are counted, and nothing else."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings
from collections.abc import Iterator

import pytest

from cloud_supervisor.observers.log_output import MAX_CHARACTERS, QueuedHandler, dropped_records, log_output
from tests.support.waiting import PATIENCE_S, wait_until


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("chaperone-test")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.setLevel(logging.NOTSET)


class Reader:
    """A reader that does not read until it may."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.called, self.reads = threading.Event(), threading.Event()

    def __call__(self, line: bytes) -> None:
        self.called.set()
        assert self.reads.wait(PATIENCE_S)
        self.lines.append(line.decode())


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, text, None, None)


def test_records_are_dropped_and_counted_while_nobody_reads() -> None:
    reader = Reader()
    handler = QueuedHandler(reader, max_waiting=4)
    handler.handle(record("first"))
    assert reader.called.wait(PATIENCE_S)
    for number in range(10):
        handler.handle(record(str(number)))
    assert handler.dropped == 6
    reader.reads.set()
    handler.close()
    dropped = "6 log records were dropped, because nobody read the log\n"
    assert [line for line in reader.lines if line != dropped] == ["first\n", "0\n", "1\n", "2\n", "3\n"]
    assert reader.lines.count(dropped) == 1


def test_a_reader_that_is_gone_is_no_error() -> None:
    def gone(line: bytes) -> None:
        raise BrokenPipeError

    handler = QueuedHandler(gone)
    handler.handle(record("first"))
    handler.handle(record("second"))
    wait_until(lambda: handler.dropped == 2, "both records counted")
    handler.close()


def test_a_record_that_cannot_be_formatted_is_counted() -> None:
    handler = QueuedHandler(Reader())
    broken = record("%d")
    broken.args = ("text",)
    handler.handle(broken)
    assert handler.dropped == 1
    handler.close()


def test_json_has_one_object_on_each_line(logger: logging.Logger) -> None:
    out = io.StringIO()
    with log_output("json", out):
        logger.info("refused", extra={"tenant": "acme", "count": 3})
        logger.warning("two\nlines of %s", "text")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "refused", "level": "info", "logger": "chaperone-test", "tenant": "acme", "count": 3}
    assert second["event"] == "two\\nlines of text"


def test_a_line_of_text_cannot_forge_another(logger: logging.Logger) -> None:
    out = io.StringIO()
    with log_output("console", out):
        logger.info("refused", extra={"tenant": "a\n2026-01-01T00:00:00Z [error] forged\x1b[2J"})
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()


def test_errors_are_placed_and_not_quoted(logger: logging.Logger) -> None:
    out = io.StringIO()
    with log_output("json", out):
        try:
            try:
                raise KeyError("canary")
            except KeyError as error:
                raise ValueError("prompt: canary") from error
        except ValueError:
            logger.exception("stream failed")
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: ValueError('canary')")
    failed, retrieved = map(json.loads, out.getvalue().splitlines())
    assert "canary" not in out.getvalue()
    assert failed["event"].startswith("stream failed: ValueError < test_errors_are_placed_and_not_quoted (")
    assert "; after KeyError < " in failed["event"]
    assert retrieved["event"] == "Task exception was never retrieved"


def test_details_of_asyncio_are_whole() -> None:
    out, asyncio_log = io.StringIO(), logging.getLogger("asyncio")
    asyncio_log.setLevel(logging.DEBUG)
    try:
        with log_output("json", out):
            asyncio_log.debug("Using selector: %s", "EpollSelector")
    finally:
        asyncio_log.setLevel(logging.NOTSET)
    assert json.loads(out.getvalue())["event"] == "Using selector: EpollSelector"


def test_long_records_are_cut(logger: logging.Logger) -> None:
    out = io.StringIO()
    with log_output("json", out):
        logger.info("x" * 100_000)
    assert len(out.getvalue()) < MAX_CHARACTERS + 200


def test_warnings_are_records_and_handlers_come_back() -> None:
    out, root = io.StringIO(), logging.getLogger()
    before = root.handlers[:]
    with log_output("json", out), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("beware", UserWarning, stacklevel=1)
        assert dropped_records() == 0
    assert "beware" in json.loads(out.getvalue())["event"]
    assert root.handlers == before
