"""Server processes that are killed while devices write, over TLS and with tokens: texts continue on the other one."""

from __future__ import annotations

import asyncio
import subprocess
from collections import deque
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chaperone_common.session import Committed
from chaperone_common.types import Mode, OnDeviation
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, GateSettings
from edge_client.events import Event
from tests.support.chaos.replicas import Credentials
from tests.support.chaos.texts import check_text, fake_drafter, request_for, some_texts, written_alone
from tests.support.fakes.target import fake_target
from tests.support.links.forwarder import Forwarder, forwarding
from tests.support.processes.commands import server_process

TEXTS, DEVICES = 10, 2
TOKENS = 40
TEXT_S = 120.0  # a text that takes longer has hung


@dataclass
class Service:
    """Two processes, and the devices' way to one of them."""

    arguments: list[str]
    stack: ExitStack
    forwarders: list[Forwarder]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # by address
    kills: int = 0

    def start(self, address: str = "127.0.0.1:0") -> str:
        """Start a process and wait until it serves."""
        process, address = self.stack.enter_context(
            server_process(*self.arguments, "--listen", address, fake_model=True)
        )
        self.processes[address] = process
        return address

    async def kill(self) -> None:
        """Kill the process that serves, lead the devices to the other one, and start the killed one again."""
        killed = self.forwarders[0].upstream
        assert killed is not None
        (other,) = self.processes.keys() - {killed}
        for forwarder in self.forwarders:
            forwarder.upstream = other
        self.processes[killed].kill()
        self.kills += 1
        await asyncio.to_thread(self.processes[killed].wait)
        await asyncio.to_thread(self.start, killed)


@pytest.mark.timeout(300)
def test_texts_continue_on_the_other_process_after_each_kill(tiny_pair: Path, tmp_path: Path) -> None:
    credentials = Credentials(tmp_path, certificates=1)
    _, token_file = credentials.new_token("tenant")
    arguments = ["--tls-cert", str(credentials.cert_file), "--tls-key", str(credentials.key_file)]
    arguments += ["--tokens", str(credentials.tokens_file)]
    with ExitStack() as processes:
        service = Service(arguments, processes, [])
        addresses = [service.start() for _ in range(2)]

        async def write_all() -> int:
            async with AsyncExitStack() as stack:
                clients = []
                for _ in range(DEVICES):
                    service.forwarders.append(await stack.enter_async_context(forwarding(addresses[0])))
                    settings = config(service.forwarders[-1].address, credentials.ca_file, token_file)
                    clients.append(
                        await stack.enter_async_context(EdgeClient(settings, drafter=fake_drafter(tiny_pair)))
                    )
                return await write_in_turns(clients, service, tiny_pair)

        hit = asyncio.run(write_all())
    assert service.kills == TEXTS // DEVICES
    assert hit >= service.kills


def config(address: str, ca_file: Path, token_file: Path) -> EdgeConfig:
    return EdgeConfig(
        pair="tiny",
        closing_audit=True,
        cloud=CloudSettings(
            address=address,
            ca_file=ca_file,
            token_file=token_file,
            connect_timeout_ms=60_000.0,
            reconnect_timeout_ms=60_000.0,
            on_loss="fail",
        ),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=GateSettings(policy="threshold", risk=0.3, on_deviation=OnDeviation.RETRACT),
    )


async def write_in_turns(clients: list[EdgeClient], service: Service, pair: Path) -> int:
    """Write a text on all devices at once, with one kill in the middle, until none is left; return how many it hit."""
    target, hit = fake_target(pair), 0
    texts = deque(some_texts(TEXTS, (Mode.EXACT, Mode.GATED), seed=1, least=TOKENS, most=TOKENS))

    async def write(client: EdgeClient, middle: asyncio.Event) -> bool:
        request, events = request_for(client, texts.popleft()), list[Event]()
        async with asyncio.timeout(TEXT_S):
            async for event in client.stream(request):
                events.append(event)
                if sum(isinstance(each, Committed) for each in events) >= 5 and not middle.is_set():
                    middle.set()
                    killing.append(asyncio.create_task(service.kill()))
                    await asyncio.sleep(0)  # the kill comes before the next frame
        eos = client.manifest.eos_token_ids
        return check_text(events, written_alone(target, request, eos)).stats.reconnects > 0

    while texts:
        middle, killing = asyncio.Event(), list[asyncio.Task[None]]()
        hit += sum(await asyncio.gather(*(write(client, middle) for client in clients)))
        await asyncio.gather(*killing)
    return hit
