"""Ctrl-C at a command: in a text, at the prompt, and while its modules are imported."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.fakes.target import Brake, fake_target
from tests.support.processes.commands import ended, environment, start_client, start_python
from tests.support.processes.servers import serving
from tests.support.waiting import START_S, until

PROMPT = "the list of a number is"

IN_THE_BACKGROUND = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import tests.conftest
child = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
subprocess.run([sys.executable, "-c", child])
signal.raise_signal(signal.SIGINT)
print("still running")
"""


def test_children_can_be_interrupted_where_the_tests_run_in_the_background() -> None:
    assert ended(start_python("-c", IN_THE_BACKGROUND)) == (0, b"True\nstill running\n", "")


def test_control_c_exits_with_130_and_frees_the_session(tiny_pair: Path) -> None:
    brake = Brake()

    async def run() -> tuple[int, bytes, str]:
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (server, address):
            try:
                process = start_client("--cloud", address, PROMPT)
                await until(brake.reached.is_set, "the cloud reads", START_S)
                process.send_signal(signal.SIGINT)
                result = await asyncio.to_thread(ended, process)
                await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            finally:
                brake.let_go.set()
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "the KV is freed")
            return result

    code, out, err = asyncio.run(run())
    assert (code, err) == (130, "")
    assert out.strip() == b"", "nothing was final yet"


def test_control_c_at_the_prompt_exits_with_130(tiny_pair: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "edge_client.apps.cli.main", "generate", "--pair", "tiny", "--mode", "edge"]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    try:
        assert process.stderr is not None
        assert b"end it with Ctrl-D" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, b"", "")
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)


READY = "import sys; from chaperone_common.command import entry; print('ready', flush=True); sys.exit(entry.{}())"


@pytest.mark.parametrize("delay_s", [0.05, 0.15, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    ("command", "arguments"),
    [("device", ["generate", "hi"]), ("cloud", ["models", "list"]), ("link", ["profiles"])],
)
def test_control_c_during_imports_ends_silently(command: str, arguments: list[str], delay_s: float) -> None:
    process = start_python("-c", READY.format(command), *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay_s)  # no traceback at any moment
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=START_S)
    assert process.returncode in (130, -signal.SIGINT, 0, 1), "interrupted, or done before"
    assert b"Traceback" not in errors


SWALLOWING = """
import signal, weakref
class Thing: pass
def main():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    print("went on", flush=True)
    return 0
"""


def test_control_c_in_a_place_that_cannot_raise_ends_silently(tmp_path: Path) -> None:
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from chaperone_common.command import entry; "
    process = start_python("-c", f"{program}sys.exit(entry._run('swallowing'))")
    shown, errors = process.communicate(timeout=START_S)
    assert (process.returncode, shown, errors) == (-signal.SIGINT, b"", b"")
