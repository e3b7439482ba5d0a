"""Make an environment that only some tests need: `python -m tools.environments NAME`.

aider    a program that talks to the endpoint, in .cache/aider
3.12     the libraries of a device, for that Python, in .cache/pythons/3.12

If it cannot be made, this says why and succeeds. The tests that need it skip with the same reason, and the next
`make test` tries again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AIDER = ROOT / ".cache" / "aider"
PYTHONS = ROOT / ".cache" / "pythons"  # a folder for each version
LIMIT_S = 600.0  # of one environment; pip itself gives up a connection that is silent
CAN_MAKE = "import venv, ensurepip"  # Debian has both in a package of their own
INSTALL = (
    *("-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", "--retries", "2", "--timeout", "15"),
    *("install", "--no-compile"),
)
_DONE, _REASON, _LOG = ".done", "why-not", "log"  # files in the folder of an environment


class CannotMake(Exception):
    """The reason why an environment cannot be made."""


def missing(folder: Path) -> str | None:
    """Return why there is no environment in a folder; None if there is one."""
    if (folder / _DONE).is_file():
        return None
    reason = folder / _REASON
    return reason.read_text(encoding="utf-8") if reason.is_file() else "`make test` has not made it"


def make(folder: Path, python: Sequence[str], *commands: Sequence[str], limit_s: float = LIMIT_S) -> str | None:
    """Make an environment with the first of several interpreters that can, and run commands of its own Python in it.

    Return the reason if it cannot be made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    end = time.monotonic() + limit_s
    try:
        _run(folder, end, _able(python), "-m", "venv", str(folder))
        for command in commands:
            _run(folder, end, str(folder / "bin" / "python"), *command)
    except CannotMake as error:
        (folder / _REASON).write_text(str(error), encoding="utf-8")
        return str(error)
    (folder / _DONE).touch()
    return None


def interpreters(version: str) -> list[str]:
    """Return where the interpreters of a version may be: in the path, and those of pyenv."""
    return [f"python{version}", *map(str, sorted((Path.home() / ".pyenv").glob(f"versions/{version}.*/bin/python")))]


def _able(pythons: Sequence[str]) -> str:
    found = [path for path in map(shutil.which, pythons) if path is not None]
    for path in found:
        if subprocess.run([path, "-c", CAN_MAKE], capture_output=True, check=False).returncode == 0:
            return path
    if found:
        raise CannotMake(f"{found[0]} fails at `{CAN_MAKE}`; on Debian, install the package {pythons[0]}-venv")
    raise CannotMake(f"there is no {pythons[0]} in PATH, and none of pyenv")


def _run(folder: Path, end: float, *command: str) -> None:
    log = folder / _LOG
    try:
        with log.open("wb") as output:  # a pipe would wait for children of a command that is killed
            left = max(end - time.monotonic(), 0.001)
            ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        raise CannotMake("it takes too long; is the package index slow?") from None
    if ended.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        errors = [line for line in lines if line.startswith("ERROR: ")] or [line for line in lines if line]
        raise CannotMake(errors[-1] if errors else f"{command[0]} ended with {ended.returncode}")


def main(name: str) -> None:
    """Make the environment of a name."""
    if name == "aider":  # its list is whole, so that nothing is to be resolved
        folder, pythons = AIDER, [sys.executable]
        commands = [(*INSTALL, "--no-deps", "-r", "tools/aider.txt"), ("-m", "pip", "check")]
    else:
        folder, pythons = PYTHONS / name, interpreters(name)
        uninstall = ("-m", "pip", "uninstall", "--quiet", "--yes", "chaperone-llm")  # the tests install the wheel
        commands = [(*INSTALL, "-c", "constraints.txt", ".[edge]"), uninstall]
    if (reason := make(folder, pythons, *commands)) is not None:
        print(f"{folder.relative_to(ROOT)}: not made, so the tests that need it are skipped: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
