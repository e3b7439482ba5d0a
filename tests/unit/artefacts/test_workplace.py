"""The place of a pair's models: whole or absent, also after a command that died at any moment."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chaperone_common.artefacts.placing import put_in_place
from cloud_supervisor.export.workplace import Workplace
from tests.support.processes.commands import ROOT, environment

# Dies before the rename, or the removal of a folder, of the given number.
DYING = """
import os, shutil, sys
from pathlib import Path
from cloud_supervisor.export.workplace import Workplace

models, command, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def dying(work):
    def counted(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return work(*arguments, **options)
    return counted

Path.replace, shutil.rmtree = dying(Path.replace), dying(shutil.rmtree)
place = Workplace(models, "mine")
with place.locked(print):
    if command == "remove":
        place.remove()
    else:
        with place.building() as folder:
            (folder / "model").write_text("new")
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model").write_text("old")
    return tmp_path / "models"


def died(models: Path, command: str, step: int) -> bool:
    """Run a command that dies before a step; return False if it has fewer steps, and has ended."""
    arguments = [sys.executable, "-c", DYING, str(models), command, str(step)]
    return subprocess.run(arguments, env=environment(), cwd=ROOT, check=False).returncode == 9


def content(models: Path) -> str | None:
    """Return the model in its place; None if there is none."""
    file = models / "mine" / "model"
    return file.read_text() if file.exists() else None


def started_again(models: Path) -> None:
    with Workplace(models, "mine").locked(print):
        pass


def silent(_: str) -> None:
    pass


def test_a_pull_that_dies_at_any_step_loses_no_model(models: Path) -> None:
    found: list[str | None] = []
    step = 0
    while died(models, "pull", step):
        started_again(models)
        found.append(content(models))
        assert {path.name for path in models.iterdir()} == {"mine", ".mine.lock"}
        (models / "mine" / "model").write_text("old")
        step += 1
    assert found == ["old", "old", "new", "new", "new"], "each rename, and the removals after them"


def test_between_the_renames_the_old_model_has_no_place(models: Path) -> None:
    """Else the test above would not meet the moment that it is about."""
    assert died(models, "pull", 1)
    assert content(models) is None


def test_a_service_that_starts_after_a_pull_has_died_finds_the_old_model(models: Path) -> None:
    assert died(models, "pull", 1)
    place = Workplace(models, "mine")
    with (models / ".mine.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place.restore()
        assert content(models) is None, "another pull is at work"
    place.restore()
    assert content(models) == "old"
    place.restore()
    assert content(models) == "old"


def test_an_old_model_does_not_replace_a_new_one(models: Path) -> None:
    assert died(models, "pull", 2)
    Workplace(models, "mine").restore()
    assert content(models) == "new"


def test_a_removal_that_dies_leaves_the_whole_model_or_none(models: Path) -> None:
    assert died(models, "remove", 0)
    assert content(models) == "old"
    assert died(models, "remove", 1)
    assert not (models / "mine").exists()
    place = Workplace(models, "mine")
    place.restore()
    assert not (models / "mine").exists(), "what was removed does not come back"
    assert place.has_any()
    started_again(models)
    assert not place.has_any()


@pytest.mark.parametrize("error", [OSError(errno.EBUSY, "busy"), KeyboardInterrupt()], ids=repr)
def test_the_old_folder_has_its_place_again_if_the_new_one_gets_none(
    models: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rename = Path.replace
    new, final, aside = models / "new", models / "mine", models / "aside"
    new.mkdir()

    def replace(path: Path, target: Path) -> Path:
        if path == new:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(type(error)):
        put_in_place(new, final, aside)
    assert content(models) == "old"
    assert not aside.exists()


def test_a_finished_model_can_be_read_by_others(models: Path) -> None:
    before = os.umask(0o077)
    try:
        place = Workplace(models, "mine")
        with place.locked(silent), place.building() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert place.final.stat().st_mode & 0o777 == 0o755


def test_an_old_model_that_cannot_be_removed_does_not_fail_the_pull(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = shutil.rmtree

    def refuse(path: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    place = Workplace(models, "mine")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        with place.locked(silent), place.building() as folder:
            (folder / "model").write_text("new")
    assert content(models) == "new"
    assert shutil.rmtree is removed
    started_again(models)
    assert {path.name for path in models.iterdir()} == {"mine", ".mine.lock"}
