"""The file of an unfinished run: its rows, and their repetition."""

from __future__ import annotations

from pathlib import Path

from benchmarks.kit.work_file import WorkFile
from tests.support.benchmarks.rows import make_row

A, B = make_row("a", "exact", 1.0), make_row("b", "exact", 2.0)


def test_a_work_file_continues_after_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "new" / "work.jsonl"
    WorkFile(path).add(A)
    again = WorkFile(path)
    assert again.rows == {("a", "exact", 0): A}
    keys = [("b", "exact", 0), ("a", "exact", 0), ("a", "exact", 1), ("a", "cloud", 0)]
    assert again.missing(keys) == [("b", "exact", 0), ("a", "exact", 1), ("a", "cloud", 0)]


def test_an_incomplete_line_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    work = WorkFile(path)
    work.add(A)
    work.add(B)
    path.write_bytes(path.read_bytes()[:-5])
    work = WorkFile(path)
    assert set(work.rows) == {("a", "exact", 0)}
    work.add(B)
    assert WorkFile(path).rows == {("a", "exact", 0): A, ("b", "exact", 0): B}


def test_fresh_drops_earlier_rows(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    WorkFile(path).add(A)
    assert WorkFile(path, fresh=True).rows == {}
    assert WorkFile(path).rows == {}
