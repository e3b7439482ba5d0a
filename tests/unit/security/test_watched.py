"""A value follows its files, a second at a time, and never becomes a broken one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from chaperone_common.errors import ConfigError
from cloud_supervisor.security.watched import Watched
from tests.support.fakes.clock import ManualClock


class Loader:
    """Reads a number from a file, and counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loads = 0

    def __call__(self) -> int:
        self.loads += 1
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            raise ConfigError(f"{self.path}: no number") from None


def test_a_change_is_noticed_within_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "n", ManualClock()
    path.write_text("1")
    load = Loader(path)
    watched = Watched(load, [path], clock)
    path.write_text("22")
    assert (watched.value, watched.version) == (1, 0), "it looks once a second"
    clock.seconds = 1.0
    assert (watched.value, watched.version, load.loads) == (22, 1, 2)
    clock.seconds = 9.0
    assert (watched.value, load.loads) == (22, 2), "an unchanged file is not read"


def test_a_broken_file_changes_nothing_and_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "n", ManualClock()
    path.write_text("1")
    watched = Watched(Loader(path), [path], clock)
    path.write_text("broken")
    with caplog.at_level(logging.ERROR):
        for clock.seconds in (1.0, 2.0, 3.0):
            assert (watched.value, watched.version) == (1, 0)
    assert [record.message for record in caplog.records] == [f"{path}: no number; what was loaded before stays in use"]
    path.unlink()
    clock.seconds = 4.0
    assert watched.value == 1
    path.write_text("5")
    clock.seconds = 5.0
    assert (watched.value, watched.version) == (5, 1)


def test_the_first_value_must_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no number"):
        Watched(Loader(tmp_path / "n"), [tmp_path / "n"], ManualClock())
