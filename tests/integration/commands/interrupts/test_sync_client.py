"""Ctrl-C in a program that uses the sync client: a KeyboardInterrupt, at any place."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from tests.support.fakes.target import Brake, fake_target
from tests.support.processes.commands import ended, start_python
from tests.support.processes.servers import serving
from tests.support.waiting import START_S, until

SCRIPT = """
import sys
from edge_client import SyncEdgeClient
from tests.support.processes.clients import config_for
with SyncEdgeClient(config_for(sys.argv[1])) as client:
    try:
        for event in client.stream("the list"):
            pass
    except KeyboardInterrupt:
        print("stopped")
"""


def test_control_c_in_the_sync_client_is_a_keyboard_interrupt(tiny_pair: Path) -> None:
    brake = Brake()

    async def run() -> tuple[int, bytes, str]:
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (server, address):
            try:
                process = start_python("-c", SCRIPT, address)
                await until(brake.reached.is_set, "the cloud reads", START_S)
                process.send_signal(signal.SIGINT)
                result = await asyncio.to_thread(ended, process)
                await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            finally:
                brake.let_go.set()
            return result

    assert asyncio.run(run()) == (0, b"stopped\n", "")


INTERRUPTED_ANYWHERE = """
import random, signal, time
from edge_client import SyncEdgeClient
from tests.support.processes.clients import config_for
chance, stopped = random.Random(0), 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
with SyncEdgeClient(config_for("127.0.0.1:1")) as client:
    client.generate("the list", mode="edge", max_new_tokens=8)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        whole = client.generate("the list", mode="edge", max_new_tokens=8).token_ids
        times.append(time.perf_counter() - began)
    took = min(times)  # in one that was held up, most alarms would come after the text
    for _ in range(200):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.01, 1.0) * took)
            for event in client.stream("the list", mode="edge", max_new_tokens=8):
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            stopped += 1
    assert client.generate("the list", mode="edge", max_new_tokens=8).token_ids == whole
    assert stopped > 50, stopped
"""


INTERRUPTED_IN_CLOSING = """
import random, signal, threading
from edge_client import SyncEdgeClient
from tests.support.processes.clients import config_for
chance, stopped = random.Random(0), 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(20):
    client = SyncEdgeClient(config_for("127.0.0.1:1"))
    client.generate("the list", mode="edge", max_new_tokens=2)
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1e-3))
        client.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        stopped += 1
        client.close()
    for thread in threading.enumerate():
        if thread.name == "chaperone-client":
            thread.join(10)
            assert not thread.is_alive()
assert stopped > 5, stopped
"""


def test_an_interrupt_may_strike_the_closing_of_the_sync_client(tiny_pair: Path) -> None:
    code, _, err = ended(start_python("-c", INTERRUPTED_IN_CLOSING))
    assert code == 0, err


def test_an_interrupt_may_strike_the_sync_client_anywhere(tiny_pair: Path) -> None:
    code, _, err = ended(start_python("-c", INTERRUPTED_ANYWHERE))
    assert code == 0, err
    assert "never awaited" not in err  # Python itself reports and ignores an interrupt in a finalizer
