"""Servers are replaced one after the other while devices write without a pause: no text is lost."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from chaperone_common.session import Committed
from chaperone_common.types import Mode, OnDeviation
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, GateSettings
from edge_client.events import Event
from tests.support.chaos.texts import Text, check_text, fake_drafter, request_for, some_texts, written_alone
from tests.support.fakes.target import FakeTarget, fake_target
from tests.support.processes.clients import SLOW, connected_to
from tests.support.processes.commands import server_process
from tests.support.waiting import PATIENCE_S, until

DEVICES = 8
LAME_DUCK_S, GRACE_S = 0.5, 2.0
MARGIN_S = 30.0  # for a busy machine
TEXT_S = 120.0  # a text that takes longer has hung
Process = subprocess.Popen[bytes]


class Service:
    """Server processes, by address."""

    def __init__(self, config_file: Path, processes: ExitStack) -> None:
        self._config_file = config_file
        self._stack = processes
        self.processes: dict[str, Process] = {}

    def start(self, address: str = "127.0.0.1:0") -> str:
        """Start a server, and wait until it serves."""
        process, address = self._stack.enter_context(
            server_process("--config", str(self._config_file), "--listen", address, fake_model=True)
        )
        self.processes[address] = process
        return address

    async def replace(self, address: str) -> None:
        """Stop a server as an operator does, check that it ends in time, and start it again."""
        await self.stop(address)
        await asyncio.to_thread(self.start, address)

    async def stop(self, address: str) -> None:
        process = self.processes[address]
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, LAME_DUCK_S + GRACE_S + MARGIN_S)
        assert code == 0


@contextmanager
def service(folder: Path, *, lame_duck_s: float = LAME_DUCK_S, grace_s: float = GRACE_S) -> Iterator[Service]:
    config_file = folder / "cloud.yaml"
    config_file.write_text(f"lame_duck_seconds: {lame_duck_s}\ngrace_seconds: {grace_s}\n", encoding="utf-8")
    with ExitStack() as processes:
        yield Service(config_file, processes)


@asynccontextmanager
async def devices(pair: Path, *addresses: str, count: int, patience_s: float = 60.0) -> AsyncIterator[list[EdgeClient]]:
    """Yield clients of all servers."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            cloud = CloudSettings(
                address=addresses,
                connect_timeout_ms=patience_s * 1e3,
                reconnect_timeout_ms=patience_s * 1e3,
                on_loss="fail",
            )
            config = EdgeConfig(
                pair="tiny",
                closing_audit=True,
                cloud=cloud,
                device=DeviceSettings(threads=1, allow_spinning=False),
                gate=GateSettings(policy="threshold", risk=0.3, on_deviation=OnDeviation.RETRACT),
                planner=SLOW,
            )
            clients.append(await stack.enter_async_context(EdgeClient(config, drafter=fake_drafter(pair))))
        yield clients


async def write(client: EdgeClient, text: Text, target: FakeTarget) -> bool:
    """Write and check a text; return whether it moved to another stream."""
    request, events = request_for(client, text), list[Event]()
    async with asyncio.timeout(TEXT_S):
        async for event in client.stream(request):
            events.append(event)
            if isinstance(event, Committed):
                await asyncio.sleep(0.02)  # as a person reads; otherwise the devices write as fast as they can
    expected = written_alone(target, request, client.manifest.eos_token_ids)
    return check_text(events, expected).stats.reconnects > 0


def texts_are_written(seen: Counter[str], count: int) -> bool:
    return seen["text"] >= count


@pytest.mark.timeout(300)
def test_no_text_is_lost_while_both_servers_are_replaced(tiny_pair: Path, tmp_path: Path) -> None:
    target, seen = fake_target(tiny_pair), Counter[str]()
    texts = some_texts(DEVICES, (Mode.EXACT, Mode.GATED), seed=3, least=150, most=250)

    async def scenario(servers: Service) -> None:
        addresses = [await asyncio.to_thread(servers.start) for _ in range(2)]
        replaced = asyncio.Event()

        async def write_on(client: EdgeClient, text: Text) -> None:
            number = 0
            while not replaced.is_set():
                number += 1
                moved = await write(client, replace(text, seed=text.seed ^ number), target)
                seen["text"] += 1
                seen["moved"] += moved

        async with devices(tiny_pair, *addresses, count=DEVICES) as clients, asyncio.TaskGroup() as group:
            for client, text in zip(clients, texts, strict=True):
                group.create_task(write_on(client, text))
            for address in addresses:
                await until(partial(texts_are_written, seen, seen["text"] + 2), "the devices write", patience_s=60.0)
                await servers.replace(address)
            replaced.set()

    with service(tmp_path) as servers:
        asyncio.run(scenario(servers))
    print(dict(seen))
    assert seen["text"] >= DEVICES
    assert seen["moved"] >= 2


@pytest.mark.timeout(300)
def test_a_text_without_an_end_does_not_keep_a_server_and_moves_on(tiny_pair: Path, tmp_path: Path) -> None:
    """The device reads nothing while its server stops, and continues on the other one."""
    target = fake_target(tiny_pair)
    (text,) = some_texts(1, (Mode.EXACT,), seed=4, least=60, most=60)

    async def scenario(servers: Service) -> None:
        addresses = [await asyncio.to_thread(servers.start) for _ in range(2)]
        async with devices(tiny_pair, *addresses, count=1) as (client,):
            request, events = request_for(client, text), list[Event]()
            async with aclosing(client.stream(request)) as stream, asyncio.timeout(TEXT_S):
                async for event in stream:
                    events.append(event)
                    if isinstance(event, Committed) and len(events) > 5 and len(servers.processes) == len(addresses):
                        (address,) = connected_to(client)
                        await servers.stop(address)
                        del servers.processes[address]
            ending = check_text(events, written_alone(target, request, client.manifest.eos_token_ids))
            assert ending.stats.reconnects == 1

    with service(tmp_path) as servers:
        asyncio.run(scenario(servers))


@pytest.mark.timeout(300)
def test_new_texts_go_elsewhere_while_a_server_waits_for_its_last_device(tiny_pair: Path, tmp_path: Path) -> None:
    """The grace is longer than the patience of devices, so that none may wait for its end."""
    target = fake_target(tiny_pair)
    first, second = some_texts(2, (Mode.EXACT,), seed=5, least=60, most=60)

    async def scenario(servers: Service) -> None:
        addresses = [await asyncio.to_thread(servers.start) for _ in range(2)]
        patience_s = PATIENCE_S / 2
        async with devices(tiny_pair, *addresses, count=2, patience_s=patience_s) as (holding, writing):
            while len(connected_to(writing)) < len(addresses):  # each text may go to either server
                await write(writing, second, target)
            leaving: list[Process] = []
            request, events = request_for(holding, first), list[Event]()
            async with aclosing(holding.stream(request)) as stream, asyncio.timeout(TEXT_S):
                async for event in stream:
                    events.append(event)
                    if isinstance(event, Committed) and sum(isinstance(each, Committed) for each in events) == 5:
                        (address,) = connected_to(holding)
                        leaving.append(servers.processes[address])
                        leaving[0].send_signal(signal.SIGTERM)
                        for number in range(6):
                            await write(writing, replace(second, seed=number, max_new_tokens=20), target)
                        assert leaving[0].poll() is None, "it waits for the device"
            check_text(events, written_alone(target, request, holding.manifest.eos_token_ids))
            code = await asyncio.to_thread(leaving[0].wait, MARGIN_S)
            assert code == 0

    with service(tmp_path, lame_duck_s=0.0, grace_s=120.0) as servers:
        asyncio.run(scenario(servers))
