"""The journal of unaudited texts: bounds, torn lines, the lock, permissions, and what survives a killed process."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.errors import ConfigError
from chaperone_common.types import Promises
from edge_client.journal import Journal, JournalEntry, JournalState
from edge_client.journal.entry import Removal, decode, encode
from tests.support.device.journal import PROMISES, unaudited
from tests.support.processes.commands import start_python, with_file_size

ROOM = 1 << 20


@contextmanager
def journal(path: Path, limit_bytes: int = ROOM) -> Iterator[Journal]:
    opened = Journal(path, limit_bytes)
    try:
        yield opened
    finally:
        opened.close()


def texts(opened: Journal) -> list[tuple[int, ...]]:
    return [entry.text.token_ids for entry in opened.entries()]


def add(opened: Journal, *firsts: int) -> list[JournalEntry]:
    """Add a text for each number, which it begins with."""
    entries = []
    for first in firsts:
        entry, _ = opened.add(unaudited(first, 2, 3), PROMISES)
        assert entry is not None
        entries.append(entry)
    return entries


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


# Lines


def test_a_line_holds_what_an_audit_needs() -> None:
    entry = JournalEntry("a", unaudited(weight=2.0), PROMISES)
    line = encode(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == entry
    assert decode(encode(Removal("a"))) == Removal("a")


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 2},
        {"start": 8},
        {"start": True},
        {"skipped": ((3, 6),)},
        {"skipped": ((4, 9),)},
        {"skipped": ((6, 7), (4, 5))},
        {"skipped": ((4, 4),)},
        {"token_ids": (-1, 2)},
        {"token_ids": ("a", 2)},
        {"prompt_token_ids": ()},
        {"risk": float("nan")},
        {"risk": -1.0},
        {"weight": 0.5},
        {"model_digest": 3},
    ],
)
def test_a_line_with_an_impossible_text_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a line of the journal"):
        decode(encode(JournalEntry("a", unaudited(**changes), PROMISES)))


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"3", b"null", b'{"format":2}', b'{"format":1}', b"\xff", b"[" * 9999]
)
def test_anything_else_is_no_line(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of the journal"):
        decode(line)


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda x: st.dictionaries(st.text(), x)))
def test_any_json_is_read_or_refused(value: object) -> None:
    line = json.loads(encode(JournalEntry("a", unaudited(), PROMISES)))
    for field in ("text", "promises", "id"):
        with pytest.raises(ValueError, match="not a line of the journal"):
            decode(json.dumps(line | {field: {"a": value}}).encode())


# The file


def test_entries_wait_in_the_order_of_their_texts(path: Path) -> None:
    with journal(path) as opened:
        added = add(opened, 1, 2, 3)
        assert opened.oldest() == added[0]
        assert opened.settle(added[0], deviations=1)
        assert opened.oldest() == added[1]
        assert opened.state == JournalState(2, 1, 0, audited_tokens=2, deviations=1)
    with journal(path) as again:
        assert again.entries() == added[1:]
        assert again.state == JournalState(waiting=2), "the counts are those of one client"


def test_the_texts_are_for_the_owner_alone(path: Path) -> None:
    path.touch(0o644)
    old = os.umask(0)
    try:
        with journal(path) as opened:
            (entry,) = add(opened, 1)
            opened.settle(entry, deviations=0)  # this replaces the file
            add(opened, 2)
    finally:
        os.umask(old)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"journal.jsonl": 0o600, "journal.jsonl.lock": 0o600}


def test_nothing_of_a_text_stays_once_all_are_audited(path: Path) -> None:
    with journal(path) as opened:
        for entry in add(opened, 1, 2, 3):
            opened.settle(entry, deviations=0)
    assert path.read_bytes() == b""


def test_an_entry_is_settled_once(path: Path) -> None:
    with journal(path) as opened:
        (entry,) = add(opened, 1)
        assert opened.settle(entry, deviations=2)
        assert not opened.settle(entry, deviations=2)
        opened.drop(entry, "no reason")
        assert opened.state == JournalState(0, 1, 0, audited_tokens=2, deviations=2)


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_half_a_line_at_the_end_is_left_out(path: Path, kept: int, caplog: pytest.LogCaptureFixture) -> None:
    """A killed process leaves that."""
    with journal(path) as opened:
        add(opened, 1, 2)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + whole[1][:kept])
    with journal(path) as opened:
        assert texts(opened) == [(1, 2, 3)]
        assert opened.state.dropped == 0
        add(opened, 3)
    with journal(path) as opened:
        assert texts(opened) == [(1, 2, 3), (3, 2, 3)]
    assert not caplog.records


def test_an_unreadable_line_is_dropped_and_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with journal(path) as opened:
        add(opened, 1, 2)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first[:30] + b"\n" + b"\x00\xff\n" + second)
    with journal(path) as opened:
        assert texts(opened) == [(2, 2, 3)]
        assert opened.state == JournalState(waiting=1, dropped=2)
    assert path.read_bytes() == second
    assert [record.getMessage() for record in caplog.records] == [
        "gate.journal_file: a line cannot be read, and its text is not audited"
    ]


def test_a_removal_that_was_written_holds_and_one_that_was_not_does_not(path: Path) -> None:
    """A process that is killed between an audit and its removal leaves a text that is audited again."""
    with journal(path) as opened:
        entries = add(opened, 1, 2, 3, 4)
        opened.settle(entries[0], deviations=0)
    lines = path.read_bytes().splitlines(keepends=True)
    assert decode(lines[-1]) == Removal(entries[0].id)
    path.write_bytes(b"".join(lines[:-1]))
    with journal(path) as again:
        assert again.entries() == entries
    path.write_bytes(b"".join(lines))
    with journal(path) as again:
        assert again.entries() == entries[1:]


# Bounds


def test_the_oldest_texts_make_room(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = 4_000
    dropped = 0
    with journal(path, limit) as opened:
        for number in range(200):
            _, gone = opened.add(unaudited(number, 2, 3), PROMISES)
            dropped += len(gone)
            assert opened.state.waiting + dropped == number + 1
        assert opened.state.dropped == dropped > 150
        expected = texts(opened)
    assert [first for first, *_ in expected] == [*range(200 - len(expected), 200)]
    assert limit // 2 < path.stat().st_size <= limit
    with journal(path, limit) as again:
        assert texts(again) == expected
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("gate.journal_file: it is full, and the oldest texts are not audited")


def test_the_file_is_within_its_bound_after_every_write(path: Path) -> None:
    limit = 3_000
    entries: list[JournalEntry] = []
    for number in range(60):
        with journal(path, limit) as opened:
            entry, gone = opened.add(unaudited(number, 2, 3), PROMISES)
            assert entry is not None
            entries = [kept for kept in [*entries, entry] if kept.id not in gone]
            if number % 3 == 0:
                opened.settle(entries.pop(0), deviations=0)
        assert path.stat().st_size <= limit
        with journal(path, limit) as opened:
            assert opened.entries() == entries


def test_a_text_that_never_fits_is_dropped(path: Path) -> None:
    with journal(path, 2_000) as opened:
        add(opened, 1)
        assert opened.add(unaudited(*range(1_000)), PROMISES) == (None, [])
        assert texts(opened) == [(1, 2, 3)], "the others stay"
        assert opened.state.dropped == 1


def test_a_lower_bound_holds_for_an_older_file(path: Path) -> None:
    with journal(path) as opened:
        add(opened, *range(20))
    with journal(path, 2_000) as opened:
        assert 0 < opened.state.waiting < 20
        assert opened.state.waiting + opened.state.dropped == 20
        assert texts(opened)[-1] == (19, 2, 3)
    assert path.stat().st_size <= 2_000


# Failures


def test_one_client_at_a_time_has_the_file(path: Path) -> None:
    with journal(path), pytest.raises(ConfigError, match="gate.journal_file: .* is in use by another client"):
        Journal(path, ROOM)
    with journal(path):
        pass


def test_the_lock_of_a_killed_process_is_free(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edge_client.journal import Journal; "
        "journal = Journal(Path(sys.argv[1]), 1 << 20); print('open', flush=True); sys.stdin.read(); import time; "
        "time.sleep(60)"
    )
    process = start_python("-c", program, str(path))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match="in use"):
            Journal(path, ROOM)
    finally:
        process.kill()
        process.communicate()
    with journal(path):
        pass


@pytest.mark.parametrize("place", ["absent/journal.jsonl", "."])
def test_an_unusable_file_is_refused_by_its_setting(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="gate.journal_file: .* cannot be used: .*; name a file that can be written"):
        Journal(tmp_path / place, ROOM)


def test_a_full_disk_is_a_warning_and_the_texts_wait_in_memory(path: Path) -> None:
    program = """
import logging, sys
from pathlib import Path
from edge_client.journal import Journal
from tests.support.device.journal import PROMISES, unaudited
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
journal = Journal(Path(sys.argv[1]), 1 << 20)
for number in range(20):
    journal.add(unaudited(number, 2, 3), PROMISES)
journal.close()
print(journal.state.waiting, journal.state.dropped)
journal.open()
print(journal.state.waiting, journal.state.dropped)
"""
    command = [*with_file_size(1_500), "-c", program, str(path)]
    process = start_python(*command[1:])
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    warning, after_close, after_open = output.decode().splitlines()
    assert warning.startswith("WARNING gate.journal_file: ")
    assert warning.endswith("cannot be written: File too large; texts wait in memory")
    assert after_close == after_open == "20 0"
    with journal(path) as opened:
        assert 0 < opened.state.waiting < 20
        assert opened.state.dropped == 0


def test_promises_are_kept_with_the_text(path: Path) -> None:
    with journal(path) as opened:
        opened.add(replace(unaudited(), weight=4.0), Promises(0.5, 0.25))
    with journal(path) as opened:
        (entry,) = opened.entries()
        assert (entry.promises, entry.text.weight) == (Promises(0.5, 0.25), 4.0)
