"""The simulated replica takes the same batches as the real runner, from the same arrivals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import simpy

from benchmarks.fleet.conversation import Conversation, Latencies
from benchmarks.fleet.model import Fleet, affine_step
from benchmarks.fleet.replica import Replica, Window
from benchmarks.simulation import virtual_time
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.store import KvStore
from cloud_supervisor.model.ports import ForwardRequest, Urgency
from cloud_supervisor.scheduling.runner import ModelRunner
from tests.support.fakes.target import KV_BYTES_PER_TOKEN, FakeTarget

Inbox = asyncio.Queue[tuple[tuple[int, ...], asyncio.Event]]

STEP = affine_step(20, 0.5)  # ms
ROOMY = Fleet(devices=1, replicas=1, tenants=3, step_tokens=40, prefill_chunk_tokens=16, kv_tokens=100_000)
Batches = list[
    tuple[float, list[tuple[Hashable, int, int]]]
]  # seconds, and sessions with the part of the text that is fed


@dataclass(frozen=True)
class Visit:
    """A session: its prompt, and the forwards of requests that come after pauses in ms."""

    key: int
    begins_ms: float
    prompt_tokens: int
    requests: tuple[tuple[float, tuple[int, ...]], ...]

    @property
    def tenant(self) -> str:
        return f"tenant {self.key % ROOMY.tenants}"


def visits(seed: int, count: int = 40) -> list[Visit]:
    rng = np.random.default_rng(seed)
    found = []
    for key in range(count):
        requests = tuple(
            (float(rng.uniform(1, 80)), tuple(int(t) for t in rng.integers(1, 8, rng.choice([1, 1, 4]))))
            for _ in range(rng.integers(1, 6))
        )
        found.append(Visit(key, float(rng.uniform(0, 600)), int(rng.integers(2, 90)), requests))
    return found


def simulated(fleet: Fleet, sessions: Sequence[Visit]) -> Batches:
    env, batches = simpy.Environment(), Batches()

    def watch(now_ms: float, fed: Sequence[tuple[Hashable, int, int]]) -> None:
        batches.append((now_ms / 1e3, [*fed]))

    window = Window(0, 1e9)
    replica = Replica(env, STEP, fleet, window, watch)

    def visit(session: Visit) -> Any:
        yield env.timeout(session.begins_ms)
        talk = Conversation(
            replica, env, window, Latencies(), session.key, session.tenant, rtt_ms=0.0, kv_tokens=fleet.kv_tokens
        )
        talk.open(session.prompt_tokens)
        for pause_ms, forwards in session.requests:
            yield env.timeout(pause_ms)
            yield talk.ask(forwards)
        talk.close()

    for session in sessions:
        env.process(visit(session))
    env.run()
    return batches


class ThreadlessLoop(virtual_time.VirtualLoop):
    """A virtual loop that runs a thread's job at once, and ends it after the time that the model took."""

    took_s = 0.0

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        result = func(*args)
        done = self.create_future()
        elapsed_s, self.took_s = self.took_s, 0.0
        self.call_later(elapsed_s, done.set_result, result)
        return done


class Clock:
    """The loop's time, moved by what the model has just taken."""

    def __init__(self, loop: ThreadlessLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time() + self._loop.took_s


async def _real(fleet: Fleet, sessions: Sequence[Visit]) -> Batches:
    loop, batches = asyncio.get_running_loop(), Batches()
    assert isinstance(loop, ThreadlessLoop)
    keys = {session.key + 1: session.key for session in sessions}  # texts begin with the session's number

    def before(requests: Sequence[ForwardRequest]) -> None:
        fed = [request.tree for request in requests]
        batches.append((loop.time(), [(keys[tree.token_ids[0]], tree.start, tree.end) for tree in fed]))
        loop.took_s = STEP(len(fed), sum(tree.end - tree.start for tree in fed)) / 1e3

    model = FakeTarget(vocabulary_size=64, context_tokens=4096, before_forward=before)
    store = KvStore(
        model.kv_pool,
        budget_bytes=fleet.kv_tokens * KV_BYTES_PER_TOKEN,
        bytes_per_token=KV_BYTES_PER_TOKEN,
        sharing=False,
    )
    runner = ModelRunner(
        model,
        store,
        max_queue=fleet.max_queue,
        step_tokens=fleet.step_tokens,
        chunk_tokens=fleet.prefill_chunk_tokens,
        prefill_s=fleet.prefill_step_ms / 1000,
        clock=Clock(loop),
    )

    async def read(session: Visit, tokens: int, choices: int, urgency: Urgency) -> None:
        tree = TokenTree((session.key + 1,) * tokens)
        await runner.forward(session.key, tree, choices, SamplingParams(), tenant=session.tenant, urgency=urgency)

    async def serve(session: Visit, inbox: Inbox) -> None:
        length = session.prompt_tokens - 1
        await read(session, length, 0, Urgency.READ)
        for _ in session.requests:
            forwards, answered = await inbox.get()
            for number, tokens in enumerate(forwards):
                length += tokens
                await read(session, length, tokens, Urgency.WRITE if number else Urgency.VERIFY)
            answered.set()

    async def visit(session: Visit) -> None:
        await asyncio.sleep(session.begins_ms / 1e3)
        inbox = Inbox()
        serving = asyncio.ensure_future(serve(session, inbox))
        for pause_ms, forwards in session.requests:
            await asyncio.sleep(pause_ms / 1e3)
            answered = asyncio.Event()
            inbox.put_nowait((forwards, answered))
            await answered.wait()
        await serving
        runner.free(session.key)

    await asyncio.gather(*map(visit, sessions))
    return batches


def real(fleet: Fleet, sessions: Sequence[Visit]) -> Batches:
    with asyncio.Runner(loop_factory=ThreadlessLoop) as runner:
        return runner.run(_real(fleet, sessions))


@pytest.mark.parametrize("kv_tokens", [100_000, 600, 250])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_take_the_same_batches_at_the_same_times(seed: int, kv_tokens: int) -> None:
    fleet, sessions = replace(ROOMY, kv_tokens=kv_tokens), visits(seed)
    expected, found = real(fleet, sessions), simulated(fleet, sessions)
    assert len(expected) > 50
    assert [batch for _, batch in found] == [batch for _, batch in expected]
    assert [time for time, _ in found] == pytest.approx([time for time, _ in expected])
