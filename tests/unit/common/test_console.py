"""Each output gets the text that it can represent, and a loss is reported once."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from chaperone_common.command.console import Console, ReaderGone, Stream, visible
from chaperone_common.errors import OutputLost

HOSTILE = "a\x1b[31mb\x07c\x08d\re\x7ff\x9bg\u202eh\u2028i\tj\n"
SEEN = r"a^[[31mb^Gc^Hd^Me^?f\u009bg\u202eh\u2028i" + "\tj\n"


class Output(io.TextIOWrapper):
    """A standard stream in memory: a pipe, or a terminal."""

    def __init__(self, *, terminal: bool = False, encoding: str = "utf-8", error: OSError | None = None) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, newline="")
        self.terminal = terminal
        self.error = error

    def isatty(self) -> bool:
        return self.terminal

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "no descriptor")

    def flush(self) -> None:
        if self.error is not None:
            raise self.error
        super().flush()

    @property
    def written(self) -> str:
        super().flush()
        return self.bytes.getvalue().decode(self.encoding)


def console(out: Output | None, err: Output | None, **environment: str) -> Console:
    return Console("prog", out, err, environment)


def test_a_pipe_gets_data_and_a_terminal_shows_control_characters() -> None:
    pipe, terminal = Output(), Output(terminal=True)
    for output in (pipe, terminal):
        console(output, None, NO_COLOR="1").text(HOSTILE)
    assert pipe.written == HOSTILE
    assert terminal.written == SEEN
    assert visible("caf\u00e9 \U0001f600 \u4f60") == "caf\u00e9 \U0001f600 \u4f60"


def test_error_messages_escape_quoted_control_characters() -> None:
    pipe, terminal = Output(), Output(terminal=True)
    for output in (pipe, terminal):
        console(None, output).complain("bad \x1b]0;title\x07")
    assert pipe.written == "prog: bad \x1b]0;title\x07\n"
    assert terminal.written == "prog: bad ^[]0;title^G\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("terminal", [False, True])
def test_text_is_replaced_and_json_escaped_where_the_encoding_lacks_a_character(encoding: str, terminal: bool) -> None:
    text, result = Output(encoding=encoding, terminal=terminal), Output(encoding=encoding, terminal=terminal)
    console(text, None, NO_COLOR="1").text("caf\u00e9 \u20ac")
    assert text.written == {"ascii": "caf? ?", "latin-1": "caf\u00e9 ?", "utf-8": "caf\u00e9 \u20ac"}[encoding]
    value = {"text": f"caf\u00e9 \u20ac {HOSTILE}"}
    console(result, None).result(value)
    assert json.loads(result.written) == value
    assert result.written.count("\n") == 1
    if terminal:
        assert visible(result.written) == result.written
    if encoding == "utf-8":
        assert "caf\u00e9 \u20ac" in result.written


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm"}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": ""}, False, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    environment: Mapping[str, str], terminal: bool, expected: bool
) -> None:
    output = Output(terminal=terminal)
    console(output, None, **environment).text("x", "36")
    assert output.written == ("\x1b[36mx\x1b[0m" if expected else "x")


CLOSED = Output()
CLOSED.close()
LOST: list[tuple[Output | None, type[OutputLost], str]] = [
    (None, OutputLost, "it is closed"),
    (CLOSED, OutputLost, "it is closed"),
    (Output(error=OSError(errno.ENOSPC, "No space left on device")), OutputLost, "No space left on device"),
    (Output(error=BrokenPipeError(errno.EPIPE, "Broken pipe")), ReaderGone, "nobody reads it"),
]


@pytest.mark.parametrize(("output", "kind", "words"), LOST, ids=[words for _, _, words in LOST])
def test_lost_output_is_reported_with_the_name_of_its_stream(
    output: Output | None, kind: type[OutputLost], words: str
) -> None:
    stream = Stream(output, "standard output", {})
    for _ in range(2):
        with pytest.raises(kind, match=f"standard output: .*{words}") as caught:
            stream.write("x")
        assert type(caught.value) is kind
    silent = console(None, output)
    silent.complain("nobody reads it")
    silent.warn("nor that")
    silent.explain({"or": "that"})
    silent.progress("or that")
    assert silent.finished(3) == 3


def test_a_loss_found_at_the_end_is_an_error() -> None:
    errors = Output()
    assert console(Output(error=OSError(errno.ENOSPC, "No space left on device")), errors).finished(0) == 1
    assert errors.written == "prog: standard output: cannot be written: No space left on device\n"
    assert console(Output(error=BrokenPipeError()), errors).finished(0) == 0


def test_explanations_wait_for_the_end_of_the_line_on_one_terminal() -> None:
    terminal = Output(terminal=True)
    both = Console("prog", terminal, terminal, {"NO_COLOR": "1"})
    both.explain({"n": 1})
    both.text("one ")
    both.explain({"n": 2})
    both.text("line\n")
    both.text("two")
    both.explain({"n": 3})
    both.warn("now")
    both.text("more")
    assert both.finished(0) == 0
    assert terminal.written == '{"n": 1}\none line\n{"n": 2}\ntwo\n{"n": 3}\nprog: warning: now\nmore\n'


def test_explanations_on_a_pipe_are_written_at_once() -> None:
    out, err = Output(terminal=True), Output()
    apart = console(out, err, NO_COLOR="1")
    apart.text("one ")
    apart.explain({"n": 2})
    assert err.written == '{"n": 2}\n'
    assert out.written == "one "


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere() -> None:
    terminal = Output(terminal=True)
    shown = console(None, terminal)
    shown.progress("[1 of 2]" + "x" * 100)
    shown.complain("oh")
    shown.progress("")
    clear = "\r\x1b[K"
    assert terminal.written == f"{clear}[1 of 2]{'x' * 71}{clear}prog: oh\n{clear}[1 of 2]{'x' * 71}{clear}"
    for quiet in (Output(), Output(terminal=True)):
        console(None, quiet, TERM="dumb").progress("[1 of 2]")
        assert quiet.written == ""


def test_notes_are_for_terminals() -> None:
    terminal, pipe = Output(terminal=True), Output()
    for output in (terminal, pipe):
        console(None, output).note("[done]")
    assert (terminal.written, pipe.written) == ("[done]\n", "")


def test_a_stream_recognizes_its_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        stream = Stream(file, "standard output", {})
        assert stream.samestat((tmp_path / "out").stat())
        assert not stream.samestat(Path(os.devnull).stat())
    assert not Stream(None, "standard output", {}).samestat(Path(os.devnull).stat())
