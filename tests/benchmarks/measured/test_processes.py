"""Child processes of benchmarks end with the benchmarks."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

MAIN = """
import signal
from benchmarks.kit.processes import worker_pool

print(worker_pool(2).submit(pow, 2, 5).result(), flush=True)
signal.pause()
"""


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_process(ended_by: signal.Signals) -> None:
    command = [sys.executable, "-c", MAIN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "32\n"
            process.send_signal(ended_by)
            # The workers also hold the other end of this pipe, so it ends when all of them have ended.
            rest, _ = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):  # in case some have not ended
                os.killpg(process.pid, signal.SIGKILL)
    assert rest == ""
