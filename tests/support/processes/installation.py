"""Built distributions, and environments with only them and the libraries of a device."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.kit.distributions import closure
from tests.support.processes.commands import ROOT
from tools import environments

PYTHONS = ("3.11", "3.12", "3.13")  # that the device supports


class Distribution(NamedTuple):
    """The two files of one built distribution."""

    sdist: Path
    wheel: Path


def build(project: Path, folder: Path) -> Distribution:
    """Build the sdist of a project, and the wheel from that sdist alone, without a package index."""
    _run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder), cwd=project)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    _pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return Distribution(sdist, wheel)


def interpreter_for(version: str) -> Path:
    """Return the interpreter of an environment with a device's libraries, which `make test` made for a version.

    Skips the test where there is none, with the reason.
    """
    folder = environments.PYTHONS / version
    if (reason := environments.missing(folder)) is not None:
        pytest.skip(f"no environment for Python {version}: {reason}")
    return folder / "bin" / "python"


def fresh_environment(folder: Path, libraries_of: Path | None = None) -> Path:
    """Make an environment without any package of its own; return its interpreter.

    It sees the libraries of another environment, `libraries_of`, and has its Python.
    """
    if libraries_of is None:
        venv.create(folder, with_pip=False, symlinks=True)
    else:
        _run(str(libraries_of), "-m", "venv", "--without-pip", str(folder), cwd=ROOT)
        (theirs,), (ours,) = (
            python.parent.parent.glob("lib/python*/site-packages")
            for python in (libraries_of, folder / "bin" / "python")
        )
        (ours / "libraries.pth").write_text(f"{theirs}\n", encoding="utf-8")
    return folder / "bin" / "python"


def install(python: Path, *arguments: str) -> None:
    """Run `pip install` for the environment of `python`."""
    _pip("--python", str(python), "install", "--no-compile", *arguments)


def link_libraries(python: Path, requirements: Iterable[str]) -> None:
    """Link the installed libraries that these requirements pull in, and no others; a download takes half a minute."""
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    for name in closure(requirements):
        library = distribution(name)
        tops = {file.parts[0] for file in library.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (packages / top).is_symlink():  # by an earlier call
                (packages / top).symlink_to(Path(str(library.locate_file(top))))


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments, cwd=ROOT)


def _run(*command: str, cwd: Path) -> None:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")
