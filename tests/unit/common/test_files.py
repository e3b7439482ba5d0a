"""A file is replaced only when the new one is complete."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaperone_common.errors import OutputLost
from chaperone_common.files import replace_file


def test_a_file_is_replaced_with_its_rights_and_through_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace_file(link, [b"ne", b"w"])
    assert link.is_symlink()
    assert (real.read_bytes(), real.stat().st_mode & 0o777) == (b"new", 0o640)
    replace_file(tmp_path / "another", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "link", "real"]


def test_a_new_secret_is_readable_by_its_owner_alone_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    (tmp_path / "secret.part").write_bytes(b"left by a process that was killed")

    def blocks() -> Iterator[bytes]:
        yield b"a secret"
        assert (tmp_path / "secret.part").stat().st_mode & 0o777 == 0o600

    replace_file(path, blocks(), mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    replace_file(path, [b"another"], mode=0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"another", 0o640)


def full_disk() -> Iterator[bytes]:
    yield b"half"
    raise OSError(errno.ENOSPC, "No space left on device")


def stopped() -> Iterator[bytes]:
    yield b"half"
    raise KeyboardInterrupt


def test_the_old_file_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OutputLost, match="file: cannot be written: No space left on device"):
        replace_file(path, full_disk())
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, stopped())
    with pytest.raises(OutputLost, match="cannot be written"):
        replace_file(tmp_path / "nothere" / "file", [b"new"])
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"old")]
