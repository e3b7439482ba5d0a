"""The way out of a command: texts, results, explanations, progress and complaints are written here and nowhere else.

A standard stream may be closed, full or left by its reader, a pipe or a terminal, and of any encoding. A pipe is data:
it gets bytes as they are. A terminal obeys control characters, so that those of a model or a user are made visible.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from chaperone_common.errors import OutputLost

# C0 without tab and line feed, DEL, C1, and what turns the direction of writing.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_CLEAR_LINE = "\r\x1b[K"
_USUAL_COLUMNS = 80


class ReaderGone(OutputLost):
    """Who read the output went away, as `head` does: nothing is wrong, and nothing more is wanted."""


def visible(text: str) -> str:
    """Text with control characters as signs: ESC as `^[`, those beyond ASCII by their number."""
    return _UNSAFE.sub(lambda found: _sign(ord(found[0])), text)


def _sign(code: int) -> str:
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"\\u{code:04x}"


class Stream:
    """One of the standard streams."""

    def __init__(self, stream: TextIO | None, name: str, environment: Mapping[str, str]) -> None:
        self._stream = stream
        self._name = name
        self._gone: OutputLost | None = None
        self.is_terminal = _is_terminal(stream)
        self.is_smart = self.is_terminal and environment.get("TERM") != "dumb"  # it can clear a line
        self.is_coloured = _wants_colours(environment, self.is_smart)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.set_blocking(stream.fileno(), True)  # type: ignore[union-attr]  # another program may share it

    def check(self) -> None:
        """Raise OutputLost if nothing can be written; asked before work is done for it."""
        if self._stream is None or self._stream.closed:
            raise OutputLost(f"{self._name}: it is closed")

    def write(self, text: str) -> None:
        """Write at once; raises OutputLost or ReaderGone. What the encoding cannot hold becomes a question mark."""
        if self._gone is not None:
            raise self._gone
        self.check()
        assert self._stream is not None
        try:
            self._stream.write(text if self.holds(text) else self._replaced(text))
            self._stream.flush()
        except BrokenPipeError:
            self._lose(ReaderGone(f"{self._name}: nobody reads it"))
        except (OSError, ValueError) as error:
            self._lose(OutputLost(f"{self._name}: cannot be written: {getattr(error, 'strerror', None) or error}"))

    def shown(self, text: str) -> str:
        """The text as this stream should get it."""
        return visible(text) if self.is_terminal else text

    def json(self, value: Any) -> str:
        """One line of JSON, escaped where the stream could not hold a character, or a terminal would obey it."""
        text = json.dumps(value, ensure_ascii=False)
        if not self.holds(text):
            return json.dumps(value)
        return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if self.is_terminal else text

    def holds(self, text: str) -> bool:
        """Whether the stream's encoding has all characters."""
        try:
            text.encode(*self._encoding)
        except UnicodeEncodeError:
            return False
        return True

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        try:
            assert self._stream is not None
            return os.get_terminal_size(self._stream.fileno()).columns or _USUAL_COLUMNS
        except (OSError, ValueError):
            return _USUAL_COLUMNS

    def samestat(self, status: os.stat_result) -> bool:
        """Whether this is what the stream writes to."""
        try:
            assert self._stream is not None
            return os.path.samestat(os.fstat(self._stream.fileno()), status)
        except (OSError, ValueError, AssertionError):
            return False

    def close(self) -> None:
        """Flush what others wrote; raises OutputLost or ReaderGone. Python's own flush then has nothing to fail at."""
        if self._stream is None or self._stream.closed:
            return
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._lose(ReaderGone(f"{self._name}: nobody reads it"))
        except (OSError, ValueError) as error:
            self._lose(OutputLost(f"{self._name}: cannot be written: {getattr(error, 'strerror', None) or error}"))

    @property
    def _encoding(self) -> tuple[str, str]:
        return getattr(self._stream, "encoding", None) or "utf-8", getattr(self._stream, "errors", None) or "strict"

    def _replaced(self, text: str) -> str:
        encoding, _ = self._encoding
        return text.encode(encoding, "replace").decode(encoding)

    def _lose(self, error: OutputLost) -> None:
        """Let what is still buffered go nowhere: it would fail once more when Python ends."""
        self._gone = error
        with contextlib.suppress(OSError, ValueError):
            assert self._stream is not None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        raise error from None


class Console:
    """Standard output for results, standard error for all that is said about them.

    Both may be one terminal: what is said then neither breaks into a line of the text, nor into that of the progress.
    """

    def __init__(self, program: str, out: TextIO | None, err: TextIO | None, environment: Mapping[str, str]) -> None:
        self._program = program
        self.out = Stream(out, "standard output", environment)
        self.err = Stream(err, "standard error", environment)
        self._one_terminal = self.out.is_terminal and self.err.is_terminal
        self._line_open = False  # of the text, on that terminal
        self._held: list[str] = []  # to be said when it ends
        self._progress = ""

    @classmethod
    def standard(cls, program: str) -> Console:
        """The console of this process."""
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
        """Say what went wrong, on standard error."""
        self._say(f"{self._program}: {text}")

    def warn(self, text: str) -> None:
        """Say what the user should know of a result that is there, on standard error."""
        self._say(f"{self._program}: warning: {text}")

    def note(self, text: str) -> None:
        """Say something for people who watch; nothing on pipes and in files."""
        if self.err.is_terminal:
            self._say(text, shown=True)

    def say(self, text: str) -> None:
        """Say something, on standard error."""
        self._say(text)

    def explain(self, value: Any) -> None:
        """Say a line of JSON on standard error; on a terminal, when the text's line has ended."""
        self._held.append(self.err.json(value))
        if not self._line_open:
            self._say_held()

    def progress(self, text: str) -> None:
        """Show how far the work is, in a line that the next call replaces; an empty text takes it away."""
        if not self.err.is_smart:
            return
        self._try(_CLEAR_LINE + visible(text)[: self.err.columns - 1])
        self._progress = text

    def finished(self, code: int, *, failure: int = 1) -> int:
        """End all lines; return the exit code, or `failure` where output was lost that nobody complained of."""
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
        """Nobody can be told that nothing can be said."""
        with contextlib.suppress(OutputLost):
            self.err.write(text)


def painted(text: str, colour: str | None) -> str:
    """Text in a colour, given as SGR parameters."""
    return f"\x1b[{colour}m{text}\x1b[0m" if text and colour else text


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _wants_colours(environment: Mapping[str, str], able: bool) -> bool:
    """Against all else counts https://no-color.org, then https://force-color.org, then what the stream is."""
    if environment.get("NO_COLOR"):
        return False
    return bool(environment.get("FORCE_COLOR")) or able


def _occupy_descriptors() -> None:
    """Keep the numbers of closed standard streams, lest a file that is opened next gets what is meant for them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)
