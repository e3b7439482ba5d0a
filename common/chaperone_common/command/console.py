"""The output of a command: texts, results, explanations, progress and errors.

A command writes through this module alone. A standard stream may be closed or full, may have lost its reader, and may
have any encoding. A pipe gets text unchanged, because it carries data. A terminal obeys control characters, so those of
a model or a user are made visible.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, TextIO

from chaperone_common.errors import OutputLost

# C0 without tab and line feed, DEL, C1, and the characters that change the direction of text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_CLEAR_LINE = "\r\x1b[K"
_USUAL_COLUMNS = 80


class ReaderGone(OutputLost):
    """The reader of the output has left, as `head` does. This is no failure, and ends the command."""


def visible(text: str) -> str:
    """Return text with visible control characters: ESC as `^[`, characters beyond ASCII by their number."""
    return _UNSAFE.sub(lambda found: _sign(ord(found[0])), text)


def _sign(code: int) -> str:
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"\\u{code:04x}"


class Stream:
    """One of the standard streams."""

    def __init__(self, stream: TextIO | None, name: str, environment: Mapping[str, str]) -> None:
        self._stream = stream
        self._name = name
        self._failure: OutputLost | None = None
        self.is_terminal = _is_terminal(stream)
        self.is_smart = self.is_terminal and environment.get("TERM") != "dumb"  # it can clear a line
        self.is_coloured = _wants_colours(environment, self.is_smart)
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(stream.fileno(), True)  # a program that shares it may have made it non-blocking

    def check(self) -> None:
        """Raise OutputLost if the stream is closed. Call this before the work whose result it shall carry."""
        if self._stream is None or self._stream.closed:
            raise OutputLost(f"{self._name}: it is closed")

    def write(self, text: str) -> None:
        """Write at once; raises OutputLost or ReaderGone. A character that the encoding lacks becomes `?`."""
        if self._failure is not None:
            raise self._failure
        self.check()
        self._write(text if self.holds(text) else self._replaced(text))

    def shown(self, text: str) -> str:
        """Return the text as this stream should get it."""
        return visible(text) if self.is_terminal else text

    def json(self, value: Any) -> str:
        """Return one line of JSON. Characters that the encoding lacks or a terminal would obey are escaped."""
        text = json.dumps(value, ensure_ascii=False)
        if not self.holds(text):
            return json.dumps(value)
        return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if self.is_terminal else text

    def holds(self, text: str) -> bool:
        """Return whether the stream's encoding has all characters of the text."""
        try:
            text.encode(*self._encoding)
        except UnicodeEncodeError:
            return False
        return True

    @property
    def columns(self) -> int:
        """The width of the terminal, in characters."""
        try:
            assert self._stream is not None
            return os.get_terminal_size(self._stream.fileno()).columns or _USUAL_COLUMNS
        except (OSError, ValueError):
            return _USUAL_COLUMNS

    def samestat(self, status: os.stat_result) -> bool:
        """Return whether the stream writes to the file of this status."""
        try:
            assert self._stream is not None
            return os.path.samestat(os.fstat(self._stream.fileno()), status)
        except (OSError, ValueError, AssertionError):
            return False

    def close(self) -> None:
        """Flush text that libraries wrote; raises OutputLost or ReaderGone.

        Python flushes once more at exit, and that flush then has nothing left to fail at.
        """
        if self._stream is not None and not self._stream.closed:
            self._write("")

    @property
    def _encoding(self) -> tuple[str, str]:
        return getattr(self._stream, "encoding", None) or "utf-8", getattr(self._stream, "errors", None) or "strict"

    def _replaced(self, text: str) -> str:
        encoding, _ = self._encoding
        return text.encode(encoding, "replace").decode(encoding)

    def _write(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self._fail(ReaderGone(f"{self._name}: nobody reads it"))
        except (OSError, ValueError) as error:
            self._fail(OutputLost(f"{self._name}: cannot be written: {getattr(error, 'strerror', None) or error}"))

    def _fail(self, error: OutputLost) -> NoReturn:
        """Raise the error, now and at every later write. Send buffered text to /dev/null: Python flushes it at exit."""
        self._failure = error
        with contextlib.suppress(OSError, ValueError):
            assert self._stream is not None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        raise error from None


class Console:
    """Standard output for results, standard error for messages about them.

    Both may be one terminal. A message then never breaks into a line of the text, or into the line of the progress.
    """

    def __init__(self, program: str, out: TextIO | None, err: TextIO | None, environment: Mapping[str, str]) -> None:
        self._program = program
        self.out = Stream(out, "standard output", environment)
        self.err = Stream(err, "standard error", environment)
        self._one_terminal = self.out.is_terminal and self.err.is_terminal
        self._line_open = False  # True in the middle of a line of text on that terminal
        self._held: list[str] = []  # explanations to write when that line ends
        self._progress = ""

    @classmethod
    def standard(cls, program: str) -> Console:
        """Return the console of this process."""
        _occupy_descriptors()
        return cls(program, sys.stdout, sys.stderr, os.environ)

    def text(self, text: str, colour: str | None = None) -> None:
        """Write a piece of text, in a colour (SGR parameters such as `1;33`) where colours are wanted."""
        if not text:
            return
        self._write_out(painted(self.out.shown(text), colour if self.out.is_coloured else None))
        self._line_open = self._one_terminal and not text.endswith("\n")
        if not self._line_open:
            self._say_held()

    def line(self, text: str) -> None:
        """Write a line of text."""
        self.text(f"{text}\n")

    def result(self, value: Any) -> None:
        """Write a line of JSON."""
        self._write_out(self.out.json(value) + "\n")

    def complain(self, text: str) -> None:
        """Write an error to standard error, after the name of the program."""
        self._say(f"{self._program}: {text}")

    def warn(self, text: str) -> None:
        """Write a warning about a result to standard error."""
        self._say(f"{self._program}: warning: {text}")

    def note(self, text: str) -> None:
        """Write a message to standard error if it is a terminal."""
        if self.err.is_terminal:
            self._say(text, shown=True)

    def say(self, text: str) -> None:
        """Write a message to standard error."""
        self._say(text)

    def explain(self, value: Any) -> None:
        """Write a line of JSON to standard error; on a terminal, after the current line of text has ended."""
        self._held.append(self.err.json(value))
        if not self._line_open:
            self._say_held()

    def progress(self, text: str) -> None:
        """Show the progress of the work in a line that the next call replaces. An empty text removes the line."""
        if not self.err.is_smart:
            return
        self._try(_CLEAR_LINE + visible(text)[: self.err.columns - 1])
        self._progress = text

    def finished(self, code: int, *, failure: int = 1) -> int:
        """End all lines and return the exit code: `failure` in place of 0 if output was lost without a report."""
        if self._progress:
            self.progress("")
        self._end_line()
        self._say_held()
        try:
            self.out.close()
        except ReaderGone:
            pass
        except OutputLost as error:
            self.complain(error.message)
            code = code or failure
        with contextlib.suppress(OutputLost):
            self.err.close()
        return code

    def _write_out(self, text: str) -> None:
        if self._progress and self.out.is_terminal:
            self.progress("")
        self.out.write(text)

    def _say(self, text: str, *, shown: bool = False) -> None:
        again = self._progress
        if again:
            self.progress("")
        self._end_line()
        self._say_held()
        self._try(f"{text if shown else self.err.shown(text)}\n")
        if again:
            self.progress(again)

    def _say_held(self) -> None:
        held, self._held = self._held, []
        for line in held:
            self._say(line, shown=True)

    def _end_line(self) -> None:
        if self._line_open:
            self._line_open = False
            self._try("\n")

    def _try(self, text: str) -> None:
        """Write to standard error, and ignore a failure: no stream is left to report it on."""
        with contextlib.suppress(OutputLost):
            self.err.write(text)


def painted(text: str, colour: str | None) -> str:
    """Return text in a colour, given as SGR parameters."""
    return f"\x1b[{colour}m{text}\x1b[0m" if text and colour else text


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _wants_colours(environment: Mapping[str, str], able: bool) -> bool:
    """Follow https://no-color.org first, then https://force-color.org, then the kind of stream."""
    if environment.get("NO_COLOR"):
        return False
    return bool(environment.get("FORCE_COLOR")) or able


def _occupy_descriptors() -> None:
    """Open /dev/null for each closed standard stream, else the next opened file would take its number and output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)
