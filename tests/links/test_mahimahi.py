"""Traces are read, and each mistake is reported with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_common.errors import ConfigError
from link_emulator.mahimahi import MAX_FILE_BYTES, MAX_OPPORTUNITIES, load_trace, parse_trace


@pytest.mark.parametrize("text", ["0\n3\n3\n10\n", "0\n3\n3\n10", "\n0\r\n3\r\n 3 \n10\n\n"])
def test_a_trace_is_read(text: str) -> None:
    assert parse_trace(text) == (0, 3, 3, 10)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1\n2.5\n", "t:2: '2.5' is not a whole number of milliseconds, one a line"),
        ("1\n-2\n", "t:2: '-2' is not a whole number"),
        ("1 2\n", "t:1: '1 2' is not a whole number"),
        ("5\n4\n", "t:2: 4 comes after 5; sort the lines"),
        ("99999999999\n", "t:1: 99999999999 ms is more than a day; cut the trace shorter"),
        ("9" * 5000, "t:1: '9999"),
        ("", "t: no delivery opportunity; give whole milliseconds"),
        ("0\n0\n", "t: the last time is 0, but it is the period of the trace; end above 0"),
        ("1\n" * (MAX_OPPORTUNITIES + 1), f"t:{MAX_OPPORTUNITIES + 1}: more than {MAX_OPPORTUNITIES} lines"),
    ],
)
def test_a_mistake_is_reported_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_trace(text, "t")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"1\n2\n\xff\xfe")
    with pytest.raises(ConfigError, match="binary:3: not a whole number of milliseconds"):
        load_trace(path)
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="more than 16 MiB"):
        load_trace(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_trace(tmp_path)
