"""The commands as child processes: a client, a server, and any other Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.support.waiting import PATIENCE_S, START_S

ROOT = Path(__file__).resolve().parents[3]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a child process: this checkout, this CHAPERONE_HOME, default colours."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "common")]), **extra}


def with_file_size(limit_bytes: int) -> list[str]:
    """Return the beginning of a command that may write files of at most `limit_bytes`.

    The child sets its own limit: `preexec_fn` would run the fork handlers of this process, and those of gRPC may abort.
    """
    program = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes})); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return [sys.executable, "-c", program]


def start_client(*arguments: str, **extra: str) -> subprocess.Popen[bytes]:
    """Start `chaperone generate --pair tiny ...` as a process of its own, with pipes."""
    return start_python("-m", "edge_client.apps.cli.main", "generate", "--pair", "tiny", *arguments, **extra)


def on_a_terminal(*arguments: str, **extra: str) -> tuple[int, str]:
    """Run `chaperone` with all streams on one pseudo-terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "edge_client.apps.cli.main", *arguments]
    terminal = {"TERM": "xterm", **extra}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**terminal), cwd=ROOT
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 4096):
            output += chunk
    except OSError:  # the other end of a pseudo-terminal is closed
        pass
    finally:
        os.close(ours)
    return process.wait(PATIENCE_S), output.decode().replace("\r\n", "\n")


def start_python(*arguments: str, **extra: str) -> subprocess.Popen[bytes]:
    """Start another interpreter on this checkout, with pipes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**extra),
        cwd=ROOT,
    )


def announced(output: IO[bytes]) -> str:
    """Read the line that `chaperone-cloud serve --pair tiny` writes when it is ready, and return its address."""
    serving = output.readline().decode()
    assert serving.startswith("chaperone-cloud: serving tiny on 127.0.0.1:"), serving
    return serving.split()[-1]


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """Return exit code, output and errors."""
    out, err = process.communicate(timeout=START_S)
    return process.returncode, out, err.decode()


@contextmanager
def server_process(*arguments: str, fake_model: bool = False) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `chaperone-cloud serve --pair tiny ...` on a free port; yield the process and its address.

    With a fake model no torch is imported; everything else is the same.
    """
    program = "tests.support.processes.fake_server" if fake_model else "cloud_supervisor.cli"
    command = [
        *(sys.executable, "-m", program, "serve", "--pair", "tiny", "--dtype", "float32"),
        *("--threads", "1", "--listen", "127.0.0.1:0", *arguments),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=ROOT)
    alarm = threading.Timer(150.0, process.kill)  # ends the read below if the server never starts
    alarm.start()
    try:
        assert process.stdout is not None
        address = announced(process.stdout)
        alarm.cancel()
        yield process, address
    finally:
        alarm.cancel()
        process.kill()
        process.communicate()
