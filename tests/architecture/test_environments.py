"""Environments that only some tests need: one that cannot be made is reported with its reason, and ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import installation, programs
from tools import environments
from tools.environments import make, missing

PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "WARNING: the index is slow"; echo "ERROR: No matching distribution found"; echo "bye"; exit 1 ;;
  "-m hang") exec sleep 3600 ;;
esac
"""


def interpreter(path: Path, script: str = PYTHON) -> str:
    """Write a program in the place of an interpreter, since a real environment takes long to make."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(script, encoding="ascii")
    path.chmod(0o700)
    return str(path)


@pytest.fixture
def without_ensurepip(tmp_path: Path) -> str:
    """Return an interpreter as Debian has it without the package python3-venv."""
    return interpreter(tmp_path / "bin" / "python3.12", '#!/bin/sh\n[ "$1" = --version ]\n')


@pytest.fixture
def python(tmp_path: Path) -> str:
    return interpreter(tmp_path / "python")


def test_an_environment_is_made_with_the_first_interpreter_that_can(
    tmp_path: Path, without_ensurepip: str, python: str
) -> None:
    folder = tmp_path / "made"
    assert missing(folder) == "`make test` has not made it"
    assert make(folder, [without_ensurepip, "no-such-python", python], ["-m", "well"]) is None
    assert missing(folder) is None
    assert (folder / "bin" / "python").exists()


def test_an_interpreter_that_cannot_make_one_is_named(
    tmp_path: Path, without_ensurepip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(without_ensurepip).parent))
    folder = tmp_path / "made"
    assert make(folder, ["python3.99"]) == missing(folder) == "there is no python3.99 in PATH, and none of pyenv"
    reason = f"{without_ensurepip} fails at `import venv, ensurepip`; on Debian, install the package python3.12-venv"
    assert make(folder, ["python3.12"]) == missing(folder) == reason


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path, python: str) -> None:
    folder = tmp_path / "made"
    assert make(folder, [python], ["-m", "pip"]) == missing(folder) == "ERROR: No matching distribution found"


def test_an_installation_that_hangs_is_given_up(tmp_path: Path, python: str) -> None:
    folder = tmp_path / "made"
    assert make(folder, [python], ["-m", "hang"], limit_s=0.2) == missing(folder)
    assert "it takes too long" in str(missing(folder))


def test_the_command_says_the_reason_and_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "PYTHONS", tmp_path / "pythons")
    environments.main("3.99")
    assert capsys.readouterr().err == (
        "pythons/3.99: not made, so the tests that need it are skipped: "
        "there is no python3.99 in PATH, and none of pyenv\n"
    )


def test_tests_that_need_one_skip_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(environments, "PYTHONS", tmp_path)
    monkeypatch.setattr(environments, "AIDER", tmp_path / "aider")
    for folder in ("3.12", "aider"):
        assert make(tmp_path / folder, ["no-such-python"]) is not None
    with pytest.raises(pytest.skip.Exception, match="3.12: there is no no-such-python"):
        installation.interpreter_for("3.12")
    with pytest.raises(pytest.skip.Exception, match="aider: there is no no-such-python"):
        programs.require_aider()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="aider: there is no no-such-python"):
        programs.require_aider()
