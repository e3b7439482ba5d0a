"""The folder of a pull: nothing is lost when its end fails, its lock, and its writes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from chaperone_common.artefacts.manifest import ManifestFile, ModelManifest
from chaperone_common.errors import ModelError
from edge_client.artefacts import from_folder
from edge_client.artefacts.from_folder import FolderSource
from edge_client.artefacts.model import remove_model
from edge_client.artefacts.pull import PulledModel, pull
from edge_client.artefacts.source import SourceLost
from edge_client.artefacts.workplace import Workplace

CONTENT = b"new weights"
FILE = ManifestFile(bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
MANIFEST = ModelManifest(
    pair="mine",
    role="edge",
    model="new",
    source={},
    recipe={},
    versions={},
    tokenizer_digest=f"sha256:{'0' * 64}",
    vocabulary_size=4,
    eos_token_ids=(3,),
    context_tokens=8,
    files={"model.onnx": FILE},
)
WRITTEN = MANIFEST.model_dump_json().encode()


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "models").mkdir(parents=True)
    return tmp_path / "home" / "models"


def old_model(models: Path) -> Path:
    folder = models / "mine" / "edge"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text("old weights")
    return folder


async def whole_at_arrival() -> Workplace:
    """Return a workplace at which the whole new model has arrived."""
    place = Workplace("mine")
    place.begin(MANIFEST)
    async with place.appending(FILE) as append:
        await append(CONTENT)
    return place


class Lossy:
    """A source that is lost once in each file."""

    place = "lossy"

    def __init__(self, pair: str = "mine") -> None:
        self._content = MANIFEST.model_copy(update={"pair": pair}).model_dump_json().encode()
        self._lost = False

    async def manifest(self) -> bytes:
        return self._content

    async def read(self, name: str, expected: ManifestFile, offset: int) -> AsyncGenerator[bytes, None]:
        if not self._lost:
            self._lost = True
            raise SourceLost("lost")
        yield CONTENT[offset:]

    async def close(self) -> None:
        pass


# --- The end of a pull -----------------------------------------------------------------------------------------------


def test_what_has_arrived_is_kept_if_the_model_gets_no_place(models: Path) -> None:
    place = asyncio.run(whole_at_arrival())
    (models / "mine").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        place.finish(MANIFEST, WRITTEN)
    (models / "mine").unlink()
    again = Workplace("mine")
    again.begin(MANIFEST)
    assert again.arrived(FILE) == len(CONTENT)
    again.finish(MANIFEST, WRITTEN)
    assert (models / "mine" / "edge" / "model.onnx").read_bytes() == CONTENT
    assert [path.name for path in models.iterdir()] == ["mine"]


def test_the_old_model_gets_its_place_back_if_the_new_one_gets_none(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = old_model(models)
    place = asyncio.run(whole_at_arrival())
    rename = Path.replace

    def busy(path: Path, target: Path) -> Path:
        if path.parent.name == ".pulling-mine" and path.name == "edge":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", busy)
        with pytest.raises(ModelError, match="busy"):
            place.finish(MANIFEST, WRITTEN)
    assert (old / "model.onnx").read_text() == "old weights"
    place.begin(MANIFEST)
    assert place.arrived(FILE) == len(CONTENT)


def test_a_process_that_died_between_the_renames_loses_no_model(models: Path) -> None:
    old = old_model(models)
    arriving = models / ".pulling-mine"
    arriving.mkdir()
    old.replace(arriving / "replaced")
    old.parent.rmdir()
    Workplace("mine").begin(MANIFEST)
    assert (old / "model.onnx").read_text() == "old weights"
    assert list(arriving.iterdir()) == []


def test_files_are_written_outside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        threads.append(threading.current_thread())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    place = asyncio.run(whole_at_arrival())
    assert place.arrived(FILE) == len(CONTENT)
    assert threads
    assert threading.main_thread() not in threads


# --- The lock --------------------------------------------------------------------------------------------------------


def test_waiting_for_the_lock_takes_no_patience(models: Path) -> None:
    """The clock leaps while the pull waits for another one; the source that is lost afterwards is asked again."""
    said: list[str] = []

    async def play() -> PulledModel:
        loop, leapt_s = asyncio.get_running_loop(), 0.0
        now = loop.time

        def say(line: str) -> None:
            nonlocal leapt_s
            said.append(line)
            leapt_s += 1000.0
            lock.close()

        loop.time = lambda: now() + leapt_s  # type: ignore[method-assign]
        return await pull("mine", Lossy(), say=say)

    with (models / ".mine.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert asyncio.run(play()).fetched_bytes == len(CONTENT)
    assert said[0] == "mine: another pull is at work; waiting for it"
    assert said[1].startswith("lost; trying again in ")


def test_removing_says_why_it_waits(models: Path) -> None:
    old_model(models)
    said: list[str] = []
    with (models / ".mine.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(line: str) -> None:
            said.append(line)
            lock.close()

        assert asyncio.run(remove_model("mine", say=say))
    assert said == ["mine: another pull is at work; waiting for it"]


def test_a_removal_that_dies_leaves_no_half_of_a_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = old_model(models)

    class Died(BaseException):
        pass

    def die(_: Path) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)
        with pytest.raises(Died):
            asyncio.run(remove_model("mine"))
    assert not old.exists()
    assert asyncio.run(remove_model("mine")), "the rest is removed by the same command"
    assert {path.name for path in models.iterdir()} == {".mine.lock"}


def test_removing_what_was_never_here_makes_nothing(models: Path) -> None:
    models.rmdir()
    assert not asyncio.run(remove_model("mine"))
    assert not models.exists()


def test_a_file_system_without_locks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_file: object, _operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ModelError, match="cannot be locked: Operation not supported; set CHAPERONE_HOME"):
        asyncio.run(pull("mine", Lossy()))


# --- Sources ---------------------------------------------------------------------------------------------------------


def test_a_model_of_another_pair_is_refused() -> None:
    with pytest.raises(ModelError, match="pair: it is a model of 'theirs', not of 'mine'; give --pair that name"):
        asyncio.run(pull("mine", Lossy("theirs")))


def test_a_pair_that_is_a_path_is_refused(models: Path) -> None:
    with pytest.raises(ModelError, match="manifest.json: pair: String should match pattern"):
        asyncio.run(pull("mine", Lossy("../../escaped")))


def test_a_disk_that_cannot_be_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page of a process is never mapped, so reading it from this file is an error of the disk."""
    monkeypatch.setattr(from_folder, "MANIFEST_NAME", "mem")
    with pytest.raises(ModelError, match="/proc/self/mem: cannot be read: Input/output error"):
        asyncio.run(FolderSource(Path("/proc/self")).manifest())
