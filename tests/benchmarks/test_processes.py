"""What benchmarks start ends with them."""

import signal
import subprocess
import sys

import pytest

MAIN = """
import time
from benchmarks.processes import worker_pool

pool = worker_pool(2)
jobs = [pool.submit(time.sleep, 120) for _ in range(4)]
while not any(job.running() for job in jobs):
    time.sleep(0.01)
print("running", flush=True)
time.sleep(120)
"""


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_made_them(ended_by: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", MAIN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(ended_by)
        # The workers hold the other end of this pipe as well: it is at its end when all of them have ended.
        rest, _ = process.communicate(timeout=60)
    assert rest == ""
