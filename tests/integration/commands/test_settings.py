"""Impossible settings are refused by name: from a file, from flags and in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError, ModelMissing
from edge_client import CloudSettings, DeviceSettings, EdgeClient, EdgeConfig, GateSettings, GenerationSettings
from edge_client.apps.cli.main import main
from edge_client.model.onnx_model import OnnxModel, check_providers, check_running
from link_emulator.command import main as link_main

PROVIDERS: list[tuple[tuple[str, ...], str]] = [
    ((), "device.providers: there is none; name at least one of "),
    (("CUDAExecutionProvider",), "device.providers: 'CUDAExecutionProvider' is not available here"),
    (("CPUExecutionProvder",), "is not available here (did you mean 'CPUExecutionProvider'?); available: "),
    (("",), "device.providers: '' is not available here"),
    (("CPUExecutionProvider", "CPUExecutionProvider"), "device.providers: 'CPUExecutionProvider' is named twice"),
]


@pytest.mark.parametrize(("providers", "words"), PROVIDERS, ids=[words for _, words in PROVIDERS])
def test_unavailable_providers_are_refused(
    tiny_pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], providers: tuple[str, ...], words: str
) -> None:
    manifest = load_manifest(tiny_pair / "edge", role="edge")
    sizes = {"vocabulary_size": manifest.vocabulary_size, "context_tokens": manifest.context_tokens}
    with pytest.raises(ConfigError) as caught:
        OnnxModel.load(tiny_pair / "edge", threads=1, allow_spinning=False, providers=providers, **sizes)
    assert words in caught.value.message
    config = tmp_path / "mine.yaml"
    config.write_text(f"pair: tiny\nmode: edge\ndevice:\n  providers: [{', '.join(map(repr, providers))}]\n")
    capfd.readouterr()
    assert main(["generate", "--config", str(config), "--json", "x"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), "nothing of onnxruntime's"
    assert words in err


def test_a_provider_that_fails_to_start_is_refused() -> None:
    check_providers(["CPUExecutionProvider"])
    check_running(["CPUExecutionProvider"], ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=r"'CUDAExecutionProvider' could not be started, and CPUExecutionProvider"):
        check_running(["CUDAExecutionProvider"], ["CPUExecutionProvider"])


PYTHON: list[tuple[Callable[[], Any], str]] = [
    (lambda: EdgeConfig(pair=5), "pair: 5 is not text; put it in quotes"),  # type: ignore[arg-type]
    (lambda: EdgeConfig(mode="fast"), "mode: 'fast' is not 'exact', 'gated', 'edge', 'cloud' or 'conditioned'"),
    (lambda: EdgeConfig(cluod=1), "cluod: unknown key (did you mean 'cloud'?)"),  # type: ignore[call-arg]
    (
        lambda: EdgeConfig(cloud={"address": "127.0.0.1"}),  # type: ignore[arg-type]
        "cloud.address: '127.0.0.1': there is no port; write HOST:PORT, such as 127.0.0.1:50151",
    ),
    (lambda: CloudSettings(address=""), "address: '': it is empty; write HOST:PORT, such as 127.0.0.1:50151"),
    (lambda: CloudSettings(on_loss="stop"), "on_loss: 'stop' is not 'default', 'fail' or 'continue'"),  # type: ignore[arg-type]
    (lambda: DeviceSettings(threads=100_000), "threads: 100000: input should be less than or equal to 1024"),
    (lambda: DeviceSettings(threads=0), "threads: 0: input should be greater than or equal to 1"),
    (lambda: GateSettings(file=Path()), "file: "),
    (lambda: GenerationSettings(temperature=float("nan")), "temperature: nan is not a finite number"),
]


@pytest.mark.parametrize(("make", "words"), PYTHON, ids=[words for _, words in PYTHON])
def test_settings_made_in_python_raise_config_errors(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.message.startswith(words)


def test_settings_accept_lists() -> None:
    assert DeviceSettings(providers=["CPUExecutionProvider"]).providers == ("CPUExecutionProvider",)


def test_a_packaged_configuration_works_in_any_folder(
    tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert EdgeConfig.load("configs/edge.yaml") == EdgeConfig()
    options = ("--config", "configs/edge.yaml", "--pair", "tiny", "--mode", "edge", "--max-new-tokens", "2")
    assert main(["generate", *options, "x"]) == 0
    with pytest.raises(ConfigError, match=r"edge\.yml: no such file; packaged files: cloud\.yaml, edge\.yaml"):
        EdgeClient.from_config("configs/edge.yml")


def test_a_gate_path_is_relative_to_its_configuration_file(
    tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings").mkdir()
    config = tmp_path / "settings" / "mine.yaml"
    config.write_text("pair: tiny\ngate:\n  file: gates/mine.onnx\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelMissing, match=str(tmp_path / "settings" / "gates" / "mine.onnx")):
        EdgeClient.from_config(config)
    with pytest.raises(ModelMissing, match=r"^settings/gates/mine\.onnx"):
        EdgeClient.from_config("settings/mine.yaml")


FLAGS: list[tuple[list[str], str]] = [
    (["--cloud", ""], "argument --cloud: '': it is empty; write HOST:PORT"),
    (["--cloud", "127.0.0.1"], "argument --cloud: '127.0.0.1': there is no port; write HOST:PORT"),
    (["--cloud", "127.0.0.1:0"], "argument --cloud: '127.0.0.1:0': nobody listens on port 0"),
    (["--pair", ""], "argument --pair: '': not a name of lower-case letters"),
    (["--pair", "../x"], "argument --pair: '../x': not a name"),
    (["--config", ""], "argument --config: '': it is empty; give the name of a file"),
    (["--prompts", ""], "argument --prompts: '': it is empty; give the name of a file"),
    (["--out", ""], "argument --out: '': it is empty; give the name of a file"),
]
LINK_FLAGS = [
    (["--to", ""], "argument --to: '': it is empty"),
    (["--to", "127.0.0.1"], "argument --to: '127.0.0.1': there is no port"),
    (["--to", "127.0.0.1:0"], "argument --to: '127.0.0.1:0': nobody listens on port 0"),
    (["--listen", "127.0.0.1:99999"], "argument --listen: '127.0.0.1:99999': there is no port 99999"),
]
COMMANDS = [
    *((["generate", *flags, "x"], words) for flags, words in FLAGS),
    *((["calibrate", "--prompts", "in", "--out", "out", *flags], words) for flags, words in FLAGS),
    (["generate", "--concurrency", "0", "x"], "argument --concurrency: '0': not a whole number from 1 to 256"),
    (
        ["generate", "--concurrency", "2", "x"],
        "--overwrite and --concurrency are for batches; give --prompts and --out",
    ),
    (["generate", "--overwrite", "x"], "--overwrite and --concurrency are for batches"),
    (["generate", "--prompt", "x"], "--prompt: give the prompt as an argument, without a flag"),
    (["generate", "--mode", "", "x"], "argument --mode: invalid choice: '' (choose from 'exact', 'gated'"),
]


@pytest.mark.parametrize(("arguments", "words"), COMMANDS, ids=[" ".join(arguments) for arguments, _ in COMMANDS])
def test_impossible_flags_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    refuses(main, arguments, words, capsys)


@pytest.mark.parametrize(("flags", "words"), LINK_FLAGS, ids=[" ".join(flags) for flags, _ in LINK_FLAGS])
def test_impossible_flags_of_a_link_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    refuses(link_main, ["run", "--rtt-ms", "5", "--to", "127.0.0.1:1", *flags], words, capsys)


def refuses(
    command: Callable[[list[str]], int], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check that the command ends as for wrong usage, with these words on standard error alone."""
    with pytest.raises(SystemExit) as caught:
        command(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
