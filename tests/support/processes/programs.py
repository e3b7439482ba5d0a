"""Programs of other people that talk to the endpoint, as processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.waiting import START_S
from tools import environments

AIDER = environments.AIDER / "bin" / "aider"


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str


async def run_module(name: str, *arguments: str, folder: Path, **extra: str) -> Ended:
    """Run `python -m NAME ...` in a folder."""
    return await run_program(sys.executable, "-m", name, *arguments, folder=folder, **extra)


async def run_program(*command: str, folder: Path, **extra: str) -> Ended:
    """Run a command in a folder, which is its home, too; it is killed if it takes too long."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # of our modules
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**inherited, "HOME": str(folder), "NO_COLOR": "1", **extra},
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), START_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def require_aider() -> None:
    """Skip a test where aider could not be installed, with the reason; fail in CI."""
    if (reason := environments.missing(environments.AIDER)) is not None:
        if os.environ.get("CI"):
            pytest.fail(f"no environment for aider: {reason}")
        pytest.skip(f"no environment for aider: {reason}")
