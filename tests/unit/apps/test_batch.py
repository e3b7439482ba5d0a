"""JSON Lines as input: every line is an object to run or an error that names the line."""

from __future__ import annotations

import json

import pytest

from chaperone_common.errors import InvalidRequest
from edge_client.apps.batch.lines import Line, read_lines
from edge_client.apps.batch.prompt_file import MAX_LINE_BYTES, split_lines


def only(raw: bytes) -> Line:
    (line,) = read_lines([raw])
    return line


def complaint(raw: bytes) -> str:
    line = only(raw)
    assert line.error is not None
    assert (line.id, line.fields) == (None, {})
    return line.error.message


def test_objects_keep_their_line_numbers() -> None:
    lines = list(read_lines([b'{"id": "a"}\n', b"\n", b"  \t\r\n", b'{"id": 7, "prompt": "x"}']))
    assert [(line.number, line.id, line.error) for line in lines] == [(1, "a", None), (4, 7, None)]
    assert lines[1].fields == {"id": 7, "prompt": "x"}


def test_a_bad_line_does_not_stop_the_others() -> None:
    lines = list(read_lines([b"{\n", b"\xff\n", b'{"id": 3}\n']))
    assert [line.error is None for line in lines] == [False, False, True]
    assert [line.number for line in lines] == [1, 2, 3]


def test_a_byte_order_mark_is_accepted() -> None:
    assert only(b'\xef\xbb\xbf{"id": 1}').id == 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"id": "\xe9"}', "byte 8 is not UTF-8; save the file as UTF-8"),
        (b'{"id": 1', "not valid JSON: Expecting ',' delimiter"),
        (b"prompt", "not valid JSON: Expecting value"),
        (b'["a"]', "a JSON object is expected, this is list"),
        (b'"text"', "a JSON object is expected, this is str"),
        (b"null", "a JSON object is expected, this is NoneType"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"id": ' + b"1" * 5_000 + b"}", "not valid JSON"),
        (b'{"id": 1, "prompt": "\\ud800"}', "not valid JSON: lone surrogate"),
        (b'{"id": 1, "id": 2}', "not valid JSON: 'id' is given twice; remove one"),
        (b'{"id": 1, "messages": [{"role": "user", "role": "user"}]}', "'role' is given twice"),
        (b'{"id": 1, "temperature": NaN}', "not valid JSON: NaN is no finite number"),
        (b'{"id": -Infinity}', "not valid JSON: -Infinity is no finite number"),
        (b'{"id": 1e999}', "not valid JSON: 1e999 is no finite number"),
        (b'{"id": 1}\r{"id": 2}\r', "there are carriage returns: end lines with line feeds"),
        (b'\x00{"id": 1}', "there are NUL bytes, as in UTF-16: save the file as UTF-8"),
        ('{"id": 1}'.encode("utf-16"), "this is UTF-16; save the file as UTF-8"),
        (b'{"id": 1, "prompt": "' + b"x" * MAX_LINE_BYTES, "more than 16777216 bytes; shorten the prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_mistake_in_a_line_is_reported(raw: bytes, expected: str) -> None:
    assert expected in complaint(raw)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert only(json.dumps({"id": "😀"}).encode()).id == "😀"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("content", [b"", b"a", b"a\n", b"a\nbc\n\n\r\nd", b"\n\n"])
def test_blocks_are_split_into_lines_as_python_does(content: bytes, size: int) -> None:
    blocks = iter([content[start : start + size] for start in range(0, len(content), size)])
    assert list(split_lines(lambda: next(blocks, b""))) == content.splitlines(keepends=True)


def test_a_source_without_line_ends_is_refused() -> None:
    zeros = bytes(MAX_LINE_BYTES)
    with pytest.raises(InvalidRequest, match="--prompts: a line has no end within"):
        list(split_lines(lambda: zeros))


def test_a_line_without_end_takes_bounded_memory() -> None:
    blocks = iter([b"x" * 4_000_000] * 20 + [b"\nnext\n"])
    first, second = split_lines(lambda: next(blocks, b""))
    assert len(first) == MAX_LINE_BYTES + 2, "one byte more, and the line end"
    assert second == b"next\n"
