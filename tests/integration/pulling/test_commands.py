"""`chaperone models`, and the commands that fetch a model that is not here."""

from __future__ import annotations

import fcntl
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaperone_common.errors import ModelMissing
from cloud_supervisor.cli import main as cloud_main
from edge_client import CloudSettings, EdgeClient, EdgeConfig
from edge_client.apps.cli.main import main
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import NOBODY
from tests.support.processes.commands import environment, on_a_terminal, start_python, with_file_size
from tests.support.processes.servers import serving_in_thread
from tests.support.pulling.clouds import TINY, device_home, edge, same_files
from tests.support.waiting import START_S

WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "onnx", "tqdm", "cloud_supervisor"):
    sys.modules[name] = None
from edge_client.apps.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
SHORT = ("--max-new-tokens", "8", "the list of a number is")


@pytest.fixture
def address(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the tiny pair, and leave this process with the empty home of a device."""
    monkeypatch.setenv("CHAPERONE_HOME", str(home))
    with serving_in_thread(fake_target(home / "models" / "tiny"), home / "models" / "tiny", TINY) as (_, address):
        monkeypatch.setenv("CHAPERONE_HOME", str(device_home(home)))
        yield address


def models(*arguments: str) -> int:
    return main(["models", *arguments])


def test_a_new_device_answers_in_one_command_without_torch(address: str, home: Path) -> None:
    command = ("-c", WITHOUT_TORCH, "generate", "--pair", "tiny", "--cloud", address, *SHORT)
    process = start_python(*command, CHAPERONE_HOME=str(device_home(home)))
    out, err = process.communicate(timeout=START_S)
    assert process.returncode == 0, err.decode()
    assert out.decode().strip()
    first, last = err.decode().splitlines()
    assert first == f"tiny: the model is not on this device; fetching it from {address}"
    assert re.fullmatch(rf"tiny: 0\.8 MB in {device_home(home)}/models/tiny/edge", last)
    again = start_python(*command, CHAPERONE_HOME=str(device_home(home)))
    assert again.communicate(timeout=START_S) == (out, b"")


def test_afterwards_the_device_needs_no_network(address: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models("pull", "--pair", "tiny", "--cloud", address) == 0
    out, err = capsys.readouterr()
    ready, described = out.splitlines()
    assert ready == f"tiny: ready in {edge(device_home(home))}"
    assert re.fullmatch(r"tiny +tiny-draft +0\.8 MB  manifest [0-9a-f]{64}", described)
    assert err == ""
    assert models("pull", "--pair", "tiny", "--cloud", address, "--sha256", described.split()[-1]) == 0
    assert capsys.readouterr().out.startswith("tiny: already here, and whole, in ")
    assert main(["generate", "--pair", "tiny", "--mode", "edge", *SHORT]) == 0
    assert capsys.readouterr().out


def test_without_a_cloud_the_message_is_the_command(
    address: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--pair", "tiny", *SHORT]) == 1
    err = capsys.readouterr().err
    assert "no edge model here; run `chaperone models pull --pair tiny --cloud 127.0.0.1:50151`" in err
    assert "chaperone-cloud" not in err
    with pytest.raises(ModelMissing, match=f"run `chaperone models pull --pair tiny --cloud {NOBODY}`"):
        EdgeClient(EdgeConfig(pair="tiny", cloud=CloudSettings(address=NOBODY)))


def test_the_mode_edge_fetches_nothing(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--pair", "tiny", "--mode", "edge", "--cloud", address, *SHORT]) == 1
    assert f"run `chaperone models pull --pair tiny --cloud {address}`" in capsys.readouterr().err


def test_a_cloud_of_another_pair_is_named(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--cloud", address, *SHORT]) == 1
    assert "pair: this cloud serves 'tiny', not 'default'; give --pair tiny" in capsys.readouterr().err


def test_models_are_listed_verified_and_removed(address: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, code in (("list", 0), ("verify", 1)):
        assert models(command) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert "no model is on this device; run `chaperone models pull --cloud HOST:PORT`" in said.err
    assert models("verify", "--pair", "tiny") == 1
    assert "no edge model here; run `chaperone models pull --pair tiny" in capsys.readouterr().err
    assert models("pull", "--pair", "tiny", "--from", str(edge(home))) == 0
    capsys.readouterr()
    assert models("list") == 0
    assert re.fullmatch(r"tiny +tiny-draft +0\.8 MB  here\n", capsys.readouterr().out)
    assert models("verify") == 0
    assert capsys.readouterr().out.endswith("whole\n")
    damaged = edge(device_home(home)) / "model.onnx.data"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert models("list") == 0
    assert "tiny         broken: " in capsys.readouterr().out
    assert models("verify") == 1
    assert "model.onnx.data: its SHA-256 is not the manifest's; run `chaperone models pull" in capsys.readouterr().err
    assert models("remove", "--pair", "tiny") == 0
    assert capsys.readouterr().out == "tiny: removed\n"
    assert not (device_home(home) / "models" / "tiny").exists()
    assert models("remove", "--pair", "tiny") == 2
    assert "no model of 'tiny' is on this device; `chaperone models list` shows all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ("generate", "--mode", "edge", *SHORT),
            "/tinny/edge: no edge model here (did you mean 'tiny'?); give 'tiny' as the pair\n",
        ),
        (("models", "verify"), "/tinny/edge: no edge model here (did you mean 'tiny'?); give 'tiny' as the pair\n"),
        (("models", "list"), "tinny: not here (did you mean 'tiny'?); `chaperone models list` shows all\n"),
        (("models", "remove"), "NAME: no model of 'tinny' is on this device (did you mean 'tiny'?); `chaperone"),
    ],
)
def test_a_misspelt_pair_is_reported_with_the_nearest(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(home))
    assert main([*command, "--pair", "tinny"]) in (1, 2)
    assert words in capsys.readouterr().err


def test_a_pair_that_only_the_cloud_knows_is_not_taken_for_a_misspelt_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of the user's own pairs count, as does models.yaml; another name gets no hint unless it is near."""
    monkeypatch.setenv("CHAPERONE_HOME", str(home))
    with pytest.raises(ModelMissing, match="/our-own-models/edge: no edge model here; run"):
        EdgeClient(EdgeConfig(pair="our-own-models"))
    with pytest.raises(ModelMissing, match="/default/edge: no edge model here; run"):
        EdgeClient(EdgeConfig(pair="default"))


def test_a_name_is_an_argument_or_a_flag(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for program in (main, cloud_main):
        for command in ("pull", "remove"):
            for words in (["tiny", "--pair", "default"], ["--pair", "tiny", "default"]):
                with pytest.raises(SystemExit):
                    program(["models", command, *words])
                assert "NAME: 'tiny' and 'default' are given; name one pair" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            program(["models", "remove"])
        assert "the NAME of a pair is required" in capsys.readouterr().err
    source = str(edge(home))
    monkeypatch.setenv("CHAPERONE_HOME", str(device_home(home)))
    for name in (["tiny"], ["--pair", "tiny"], ["--pair", "tiny", "tiny"]):
        assert models("pull", *name, "--from", source) == 0
        assert models("list", *name) == 0
        assert models("remove", *name) == 0
    monkeypatch.setenv("CHAPERONE_HOME", str(home))
    for name in (["tiny"], ["--pair", "tiny"]):
        assert cloud_main(["models", "pull", *name]) == 0  # it is there
    assert cloud_main(["models", "remove", "--pair", "tiny"]) == 0
    assert not (home / "models" / "tiny").exists()


def test_removing_leaves_the_large_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(home))
    assert models("remove", "--pair", "tiny") == 0
    assert not edge(home).exists()
    assert (home / "models" / "tiny" / "cloud" / "manifest.json").is_file()


def test_a_terminal_shows_the_progress(address: str, home: Path) -> None:
    code, output = on_a_terminal(
        "models", "pull", "--pair", "tiny", "--cloud", address, CHAPERONE_HOME=str(device_home(home))
    )
    assert code == 0
    assert "tiny: 100%  0.8 of 0.8 MB" in output
    assert same_files(edge(device_home(home)), edge(home))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["remove"], "the NAME of a pair is required"),
        (["pull", "--pair", "../x"], "argument --pair: '../x': not a name"),
        (["pull", "--sha256", "abc"], "argument --sha256: 'abc': no SHA-256"),
        (["pull", "--max-gib", "0"], "argument --max-gib: '0': not a whole number of GiB"),
        (["pull", "--from", ""], "argument --from: '': it is empty"),
    ],
)
def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        models(*arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_read_only_home_is_reported(address: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device_home(home).mkdir()
    (device_home(home) / "models").write_text("a file")
    assert models("pull", "--pair", "tiny", "--cloud", address) in (1, 2)
    err = capsys.readouterr().err
    assert "models" in err
    assert "CHAPERONE_HOME" in err
    assert "Traceback" not in err


def test_a_full_disk_keeps_what_has_arrived(address: str, home: Path) -> None:
    command = ["-m", "edge_client.apps.cli.main", "models", "pull", "--pair", "tiny", "--cloud", address]
    place = {**environment(), "CHAPERONE_HOME": str(device_home(home))}
    full = subprocess.run([*with_file_size(500_000), *command], env=place, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1
    assert "cannot be written: File too large; make room, and run the same command again" in full.stderr
    assert not edge(device_home(home)).exists()
    (part,) = [path for path in (device_home(home) / "models" / ".pulling-tiny").iterdir() if path.stat().st_size > 1e5]
    assert part.stat().st_size == 500_000
    assert models("pull", "--pair", "tiny", "--cloud", address) == 0
    assert same_files(edge(device_home(home)), edge(home))


def test_two_pulls_at_once_are_one(address: str, home: Path) -> None:
    command = ("-m", "edge_client.apps.cli.main", "models", "pull", "--pair", "tiny", "--cloud", address)
    lock = device_home(home) / "models" / ".tiny.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        processes = [start_python(*command, CHAPERONE_HOME=str(device_home(home))) for _ in range(2)]
        for process in processes:
            assert process.stderr is not None
            assert process.stderr.readline() == b"chaperone: tiny: another pull is at work; waiting for it\n"
    outputs = sorted(process.communicate(timeout=START_S)[0].splitlines()[0] for process in processes)
    assert [b"already here" in outputs[0], b"ready in" in outputs[1]] == [True, True]
    assert same_files(edge(device_home(home)), edge(home))
