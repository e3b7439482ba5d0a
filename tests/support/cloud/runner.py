"""Tools for tests of the runner: a model that blocks, and an oracle; no sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any

from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.kv.store import KvStore
from cloud_supervisor.model.ports import ForwardRequest, ForwardResult
from cloud_supervisor.scheduling.runner import ModelRunner
from tests.support.cloud.forward import feeding
from tests.support.fakes.clock import ManualClock
from tests.support.fakes.target import KV_BYTES_PER_TOKEN, FakeTarget

SAMPLED = SamplingParams(temperature=0.9, seed=3)


class Gate:
    """Holds every forward in the model's thread until it is opened; records the first token of each request."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, requests: Sequence[ForwardRequest]) -> None:
        self.order += [request.tree.token_ids[0] for request in requests]
        self.entered.set()
        assert self.opened.wait(30)

    async def until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


def runner_of(
    model: FakeTarget,
    *,
    max_queue: int = 8,
    budget_tokens: int = 10_000,
    chunk_tokens: int = 256,
    step_tokens: int = 256,
    clock: ManualClock | None = None,
) -> ModelRunner:
    kv_store = KvStore(
        model.kv_pool, budget_bytes=budget_tokens * KV_BYTES_PER_TOKEN, bytes_per_token=KV_BYTES_PER_TOKEN
    )
    return ModelRunner(
        model, kv_store, max_queue=max_queue, step_tokens=step_tokens, chunk_tokens=chunk_tokens, clock=clock
    )


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def started(awaitable: Coroutine[Any, Any, ForwardResult]) -> asyncio.Task[ForwardResult]:
    """Return a task that has run up to its first wait."""
    task = asyncio.create_task(awaitable)
    await asyncio.sleep(0)
    return task


async def error_of(awaitable: Awaitable[object]) -> BaseException:
    [outcome] = await asyncio.gather(awaitable, return_exceptions=True)
    assert isinstance(outcome, BaseException)
    return outcome


async def forward(
    runner: ModelRunner,
    key: Hashable,
    tokens: Sequence[int],
    num_choices: int,
    sampling: SamplingParams = SAMPLED,
    *,
    branches: Sequence[BranchToken] = (),
    deadline_ms: float | None = None,
) -> ForwardResult:
    tree = TokenTree(tuple(tokens), tuple(branches))
    return await runner.forward(key, tree, num_choices, sampling, deadline_ms=deadline_ms)


def oracle(model: FakeTarget, tokens: Sequence[int], num_choices: int) -> list[Choice]:
    """Return the model's choices after the last `num_choices` of these tokens, without a cache."""
    twin = FakeTarget(model.vocabulary_size, model.context_tokens)
    return twin.forward([feeding(twin.kv_pool.new_cache(), tokens, num_choices, SAMPLED)])[0]
