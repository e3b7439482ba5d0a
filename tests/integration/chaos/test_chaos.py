"""Two hundred texts while everything around them breaks: each is the text of an undisturbed cloud.

Eight devices write at once, over TLS and with tokens, on two servers. All events are drawn from a seed, and come by the
count of tokens that became final. The models are fakes, so that the time goes into what is tested.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from chaperone_common.errors import Unauthenticated
from chaperone_common.session import Committed, Failed, Finished, Retracted
from chaperone_common.types import Mode, OnDeviation
from cloud_supervisor.admission import SessionKey
from cloud_supervisor.config import CloudConfig, LimitsConfig
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, GateSettings, PlannerSettings
from edge_client.events import Event
from link_emulator import LinkProxy, Profile
from link_emulator.profile import DirectionProfile
from tests.support.chaos.repeating_cloud import JumpingClock, RepeatingCloud
from tests.support.chaos.replicas import Credentials, Replica
from tests.support.chaos.texts import Text, check_text, fake_drafter, request_for, some_texts, written_alone
from tests.support.fakes.target import KV_BYTES_PER_TOKEN, FakeTarget, fake_target
from tests.support.links.forwarder import Forwarder, forwarding
from tests.support.processes.clients import ending_of

SEED = 7
TEXTS, DEVICES = 200, 8
VISITORS, REVOCATIONS = 3, 5  # of each visitor
LEAST_TOKENS, MOST_TOKENS = 12, 36
REVOKED_AT = 5  # final tokens
TEXT_S = 120.0  # a text that takes longer has hung
KV_TOKENS = 200  # of each server: a few sessions
EVERY_TOKENS = (10, 28)  # final tokens of all devices, from event to event
LINK = Profile(
    description="a near cloud",
    up=DirectionProfile(delay_ms=1.0, jitter_ms=1.0),
    down=DirectionProfile(delay_ms=1.0, jitter_ms=1.0),
)
PLANNERS = (
    PlannerSettings(policy="fixed", span_tokens=4, spans_in_flight=2, run_ahead_tokens=8),
    PlannerSettings(),
    PlannerSettings(policy="fixed", span_tokens=2, spans_in_flight=4, run_ahead_tokens=8),
    PlannerSettings(policy="fixed", span_tokens=3, spans_in_flight=3, run_ahead_tokens=8, takeover_tokens=4),
)
GATE = GateSettings(policy="threshold", risk=0.3, on_deviation=OnDeviation.RETRACT)
EVENTS = ("kill", "stop", "move", "reset", "half a reset", "hold", "eviction", "clock jump", "rotation")
RARE = ("kill", "stop")  # they hit all devices of a server


@dataclass
class Device:
    """A device with its link, and what it is writing."""

    tenant: str
    client: EdgeClient
    cloud: RepeatingCloud
    clock: JumpingClock
    proxy: LinkProxy
    forwarder: Forwarder


@dataclass
class Chaos:
    """Draws the next event after some final tokens."""

    random: Random
    credentials: Credentials
    replicas: list[Replica]
    devices: list[Device]
    seen: Counter[str]
    restarts: set[asyncio.Task[None]] = field(default_factory=set)
    _left: int = EVERY_TOKENS[0]
    _deck: list[str] = field(default_factory=list)

    def committed(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._left = self.random.randint(*EVERY_TOKENS)
            self._act(self._draw())

    async def end(self) -> None:
        await asyncio.gather(*self.restarts)

    def _draw(self) -> str:
        """Return the next kind of event. Each round has all of them, and the rare ones less often."""
        if not self._deck:
            self._deck = [kind for kind in EVENTS for _ in range(2 if kind in RARE else 3)]
            self.random.shuffle(self._deck)
        return self._deck.pop()

    def _act(self, kind: str) -> None:
        device = self.random.choice(self.devices)
        happened = True
        match kind:
            case "kill" | "stop":
                happened = self._restart(cut=kind == "kill")
            case "move":
                device.forwarder.move(self.random.choice([each.address for each in self.replicas]))
            case "reset":
                happened = device.proxy.reset() > 0
            case "half a reset":
                device.forwarder.reset(reset_cloud=False)
            case "hold":
                device.proxy.outage(self.random.uniform(0.02, 0.2))
            case "eviction":
                happened = self._evict(device)
            case "clock jump":
                device.clock.jump(self.random.choice((-1.0, 1.0)) * 10 ** self.random.uniform(-1, 6))
            case _:
                assert kind == "rotation"
                self.credentials.rotate()
        self.seen[kind] += happened

    def _restart(self, *, cut: bool) -> bool:
        """Take a server down, and bring it back soon; without `cut` it ends its connections in order."""
        up = [replica for replica in self.replicas if replica.server is not None]
        if not up:
            return False
        replica, down_s = self.random.choice(up), self.random.uniform(0.0, 0.2)

        async def restart() -> None:
            if cut:
                for device in self.devices:
                    if device.forwarder.upstream == replica.address:
                        device.forwarder.reset()
            await replica.stop()
            await asyncio.sleep(down_s)
            await replica.start()

        task = asyncio.create_task(restart())
        self.restarts.add(task)
        task.add_done_callback(self.restarts.discard)
        return True

    def _evict(self, device: Device) -> bool:
        """Free the keys and values of a session that goes on."""
        servers = [replica.server for replica in self.replicas if replica.server is not None]
        for server in servers:
            for session_id in device.cloud.sessions:
                server.cloud.runner.free(SessionKey(device.tenant, session_id))
        return bool(servers and device.cloud.sessions)


@asynccontextmanager
async def device(
    number: int, pair: Path, replicas: list[Replica], credentials: Credentials, seen: Counter[str]
) -> AsyncIterator[Device]:
    tenant, clock = f"tenant-{number % 3}", JumpingClock()
    _, token_file = credentials.new_token(tenant)
    async with (
        forwarding(replicas[number % len(replicas)].address) as forwarder,
        LinkProxy(LINK, to=forwarder.address, seed=number) as proxy,
    ):
        planner = PLANNERS[number % len(PLANNERS)]
        settings = config_for(proxy.address, credentials, token_file, planner)
        cloud = RepeatingCloud(settings.cloud, clock, Random(number), seen, repeated=0.3)
        async with EdgeClient(settings, cloud=cloud, drafter=fake_drafter(pair)) as client:
            yield Device(tenant, client, cloud, clock, proxy, forwarder)


def config_for(address: str, credentials: Credentials, token_file: Path, planner: PlannerSettings) -> EdgeConfig:
    return EdgeConfig(
        pair="tiny",
        closing_audit=True,
        cloud=CloudSettings(
            address=address,
            ca_file=credentials.ca_file,
            token_file=token_file,
            connect_timeout_ms=60_000.0,
            reconnect_timeout_ms=60_000.0,
            on_loss="fail",
        ),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=GATE,
        planner=planner,
    )


@pytest.mark.timeout(400)
def test_every_text_is_the_undisturbed_one(tiny_pair: Path, tmp_path: Path) -> None:
    seen = asyncio.run(_write_all(tiny_pair, tmp_path))
    print(dict(seen))
    assert seen["text"] == TEXTS
    for happening in (
        *EVENTS,
        "cache evicted for another",
        "Draft repeated",
        "token revoked in mid-stream",
        "text hit by a loss",
        "draft retracted",
        "exact",
        "gated",
    ):
        assert seen[happening] >= 10, f"{happening}: only {seen[happening]} of the ten that the test must exercise"


async def _write_all(pair: Path, folder: Path) -> Counter[str]:
    seen: Counter[str] = Counter()
    target = fake_target(pair)
    credentials = Credentials(folder, certificates=4)
    config = CloudConfig(
        kv_budget_mib=KV_TOKENS * KV_BYTES_PER_TOKEN / 2**20, limits=LimitsConfig(prefill_chunk_tokens=16)
    )
    replicas = [Replica(config, target, pair, credentials) for _ in range(2)]
    credentials.new_token("nobody")
    waiting = deque(some_texts(TEXTS, (Mode.EXACT, Mode.GATED), seed=SEED, least=LEAST_TOKENS, most=MOST_TOKENS))
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await replica.start()
            stack.push_async_callback(replica.stop)
        devices = [
            await stack.enter_async_context(device(number, pair, replicas, credentials, seen))
            for number in range(DEVICES)
        ]
        chaos = Chaos(Random(SEED), credentials, replicas, devices, seen)

        async def write_texts(device: Device) -> None:
            while waiting:
                await _write(device.client, waiting.popleft(), target, chaos)

        async with asyncio.TaskGroup() as group:
            for each in devices:
                group.create_task(write_texts(each))
            for number in range(VISITORS):
                group.create_task(_visit(number, pair, replicas, credentials, seen))
        await chaos.end()
    seen["cache evicted for another"] = sum(replica.evictions for replica in replicas)
    return seen


async def _write(client: EdgeClient, text: Text, target: FakeTarget, chaos: Chaos) -> None:
    request, seen, events = request_for(client, text), chaos.seen, []
    try:
        async with asyncio.timeout(TEXT_S):
            async for event in client.stream(request):
                events.append(event)
                if isinstance(event, Committed):
                    chaos.committed()
                seen["draft retracted"] += isinstance(event, Retracted)
        ending = check_text(events, written_alone(target, request, client.manifest.eos_token_ids))
    except Exception as error:
        error.add_note(f"{text}, after {len(events)} events")
        raise
    seen["text"] += 1
    seen[text.mode] += 1
    seen["text hit by a loss"] += ending.stats.reconnects > 0


async def _visit(
    number: int, pair: Path, replicas: list[Replica], credentials: Credentials, seen: Counter[str]
) -> None:
    """Write with one token after the other, each until it is revoked. Nobody else is to notice."""
    address = ",".join(replica.address for replica in replicas)
    slowest = PlannerSettings(policy="fixed", span_tokens=1, spans_in_flight=1, run_ahead_tokens=1)
    tenant = f"visitor-{number}"
    for _ in range(REVOCATIONS):
        token_id, token_file = credentials.new_token(tenant)
        config = config_for(address, credentials, token_file, slowest)
        async with EdgeClient(config, drafter=fake_drafter(pair)) as client, asyncio.timeout(TEXT_S):
            while isinstance(ending := await _read_slowly(client, number, token_id, credentials), Finished):
                pass
        assert isinstance(ending.error, Unauthenticated), ending
        seen["token revoked in mid-stream"] += ending.stats.completion_tokens >= REVOKED_AT


async def _read_slowly(client: EdgeClient, seed: int, token_id: str, credentials: Credentials) -> Finished | Failed:
    """Write a long text, revoke its token in the middle, and return how it ended."""
    events: list[Event] = []
    async for event in client.stream("a long text", mode="exact", temperature=1.0, seed=seed, max_new_tokens=60):
        events.append(event)
        if sum(isinstance(event, Committed) for event in events) == REVOKED_AT:
            credentials.revoke(token_id)
        await asyncio.sleep(0.06)  # as a person reads
    return ending_of(events)
