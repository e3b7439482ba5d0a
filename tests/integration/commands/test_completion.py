"""The shell completes commands, flags, their values and files of both programs."""

from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from edge_client.apps.cli.main import main
from tests.support.processes.commands import ROOT, environment

MODULES = {"chaperone": "edge_client.apps.cli.main", "chaperone-cloud": "cloud_supervisor.cli"}


@cache  # the script is the same for all words
def script(program: str, shell: str) -> str:
    command = [sys.executable, "-m", MODULES[program], "completion", shell]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True).stdout


def completed(folder: Path, program: str, *words: str) -> set[str]:
    """Return the words that bash offers for the last one."""
    ask = '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); $(complete -p "$1" | sed "s/.*-F //; s/ .*//")'
    ended = subprocess.run(
        ["bash", "-c", f'{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"', "bash", f"{folder}/script", program, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    return {word.rstrip() for word in ended.stdout.splitlines() if word}


@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [
        ("chaperone", ["se"], {"serve"}),
        ("chaperone", ["generate", "--tls"], {"--tls-ca", "--tls-cert", "--tls-key"}),
        ("chaperone", ["generate", "--mode", "e"], {"exact", "edge"}),
        ("chaperone", ["generate", "--config", "ed"], {"edge.yaml"}),
        ("chaperone", ["generate", "--prompts", "i"], {"in.jsonl"}),
        ("chaperone", ["models", "pull", "--from", "e"], {"edge.yaml"}),
        ("chaperone", ["completion", ""], {"bash", "zsh"}),
        ("chaperone-cloud", ["mod"], {"models"}),
        ("chaperone-cloud", ["models", "pu"], {"pull"}),
        ("chaperone-cloud", ["models", "rem"], {"remove"}),
        ("chaperone-cloud", ["models", "remove", "--f"], {"--forget"}),
        ("chaperone-cloud", ["serve", "--tokens", "ed"], {"edge.yaml"}),
        ("chaperone-cloud", ["models", "list", "--registry", "ed"], {"edge.yaml"}),
        ("chaperone-cloud", ["models", "add", "--edge", "ed"], {"edge.yaml"}),
        ("chaperone-cloud", ["models", "check", "ed"], {"edge.yaml"}),
    ],
)
def test_bash_completes(tmp_path: Path, program: str, words: list[str], offered: set[str]) -> None:
    for name in ("edge.yaml", "in.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "script").write_text(script(program, "bash"), encoding="utf-8")
    assert offered <= completed(tmp_path, program, *words)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("chaperone", ["generate", "--pair", ""]),
        ("chaperone", ["serve", "--pair", ""]),
        ("chaperone", ["models", "remove", "--pair", ""]),
        ("chaperone-cloud", ["serve", "--pair", ""]),
        ("chaperone-cloud", ["models", "remove", ""]),
    ],
)
def test_bash_offers_the_pairs_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: list[str]
) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "home"))
    (tmp_path / "script").write_text(script(program, "bash"), encoding="utf-8")
    assert not completed(tmp_path, program, *words) & {"mine", "my-other"}
    for name in ("mine", "my-other", "$(touch made)", ".mine.lock"):
        (tmp_path / "home" / "models" / name).mkdir(parents=True)
    offered = {word for word in completed(tmp_path, program, *words) if not word.startswith("-")}
    assert offered == {"mine", "my-other"}
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("program", MODULES)
def test_the_script_for_zsh_names_every_command(program: str, tmp_path: Path) -> None:
    text = script(program, "zsh")
    assert text.startswith(f"#compdef {program}\n")
    assert text.count("_chaperone_pairs()") == 1
    for command in {"chaperone": ("generate", "serve"), "chaperone-cloud": ("models", "token")}[program]:
        assert f"_{program.replace('-', '_')}_{command}_options=(" in text
    if (zsh := shutil.which("zsh")) is not None:
        (tmp_path / "script").write_text(text, encoding="utf-8")
        subprocess.run([zsh, "-n", str(tmp_path / "script")], check=True)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without_shtab(name: str, *rest: Any) -> Any:
        if name == "shtab":
            raise ModuleNotFoundError("No module named 'shtab'", name="shtab")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_shtab)
    assert main(["completion", "bash"]) == 2
    assert "the package shtab is not installed; run `pip install shtab`" in capsys.readouterr().err
