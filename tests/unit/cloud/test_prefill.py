"""The prompt in the supervisor: it is submitted once, and dropped as soon as its stream closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chaperone_common.frames import API_VERSION, Capabilities, ClientFrame, Close, Closed, Open, Opened, ServerFrame
from chaperone_common.types import SessionId
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.scheduling.runner import ModelRunner
from cloud_supervisor.supervisor import Supervisor
from tests.support.cloud.runner import SAMPLED, Gate, run, runner_of
from tests.support.fakes.target import FakeTarget

PROMPT = tuple(range(40))
CHUNK = 4


def supervisor_of(runner: ModelRunner, model: FakeTarget) -> Supervisor:
    capabilities = Capabilities(API_VERSION, "fake", "digest", model.vocabulary_size, model.context_tokens, 6)
    return Supervisor(runner, capabilities, LimitsConfig())


def test_a_prompt_is_read_except_its_last_token_and_its_cost_is_reported() -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model, chunk_tokens=CHUNK)

        async def stream() -> AsyncIterator[ClientFrame]:
            yield Open(SessionId("s"), "digest", SAMPLED, 40, (), PROMPT)
            await read.wait()
            yield Close(len(PROMPT), ())

        read = asyncio.Event()
        replies: list[ServerFrame] = []
        async for reply in supervisor_of(runner, model).supervise(stream()):
            replies.append(reply)
            if isinstance(reply, Opened) and reply.prefilled:
                read.set()
        await runner.close()
        assert model.tokens_read == len(PROMPT) - 1
        assert model.forwards == 10
        [_, prefilled, closed] = replies
        assert isinstance(prefilled, Opened)
        assert prefilled.compute_us > 0
        assert closed == Closed()

    run(scenario)


@pytest.mark.parametrize("how", ["with a Close", "by a newer stream"])
def test_a_stream_that_closes_frees_the_model_after_the_running_chunk(how: str) -> None:
    async def scenario() -> None:
        gate = Gate()
        model = FakeTarget(before_forward=gate)
        runner = runner_of(model, chunk_tokens=CHUNK)
        supervisor = supervisor_of(runner, model)
        opening = Open(SessionId("s"), "digest", SAMPLED, 40, (), PROMPT)

        async def stream() -> AsyncIterator[ClientFrame]:
            yield opening
            await gate.until_entered()
            if how == "by a newer stream":
                await asyncio.Event().wait()
            yield Close(len(PROMPT), ())

        async def newer() -> AsyncIterator[ClientFrame]:
            yield Open(SessionId("s"), "digest", SAMPLED, 40, (), (1, 2))
            yield Close(2, ())

        async def last_reply(frames: AsyncIterator[ClientFrame]) -> ServerFrame:
            return [reply async for reply in supervisor.supervise(frames)][-1]

        older = asyncio.create_task(last_reply(stream()))
        await gate.until_entered()
        if how == "by a newer stream":
            await last_reply(newer())
        last = await older
        gate.opened.set()
        await runner.close()
        assert isinstance(last, Closed) == (how == "with a Close")
        assert model.tokens_read == CHUNK

    run(scenario)
