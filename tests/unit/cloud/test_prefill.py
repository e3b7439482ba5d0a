"""The prompt in the supervisor: it is submitted once, and dropped as soon as its stream closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chaperone_common.frames import (
    API_VERSION,
    Capabilities,
    ClientFrame,
    Close,
    Closed,
    Encoded,
    EncodingRequest,
    Open,
    Opened,
    ServerFrame,
)
from chaperone_common.types import SessionId
from cloud_supervisor.admission import Admission
from cloud_supervisor.caller import LOCAL
from cloud_supervisor.config import LimitsConfig, QuotasConfig
from cloud_supervisor.observation import Observer, Observers, Prefilled
from cloud_supervisor.scheduling.runner import ModelRunner
from cloud_supervisor.supervisor import Supervisor
from tests.support.cloud.runner import SAMPLED, Gate, run, runner_of
from tests.support.cloud.watched import Observed
from tests.support.fakes.clock import ManualClock
from tests.support.fakes.target import FakeTarget

PROMPT = tuple(range(40))
CHUNK = 4


def supervisor_of(
    runner: ModelRunner, model: FakeTarget, observer: Observer | None = None, admission: Admission | None = None
) -> Supervisor:
    capabilities = Capabilities(
        API_VERSION,
        "fake",
        "digest",
        model.vocabulary_size,
        model.context_tokens,
        6,
        projector_digest="p",
        max_encoded_tokens=model.context_tokens,
    )
    limits = LimitsConfig(prefill_chunk_tokens=CHUNK)
    return Supervisor(runner, capabilities, limits, observer=observer, admission=admission)


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


def used_positions(admission: Admission) -> int:
    return next(state.used for state in admission.states(LOCAL.tenant) if state.name == "positions_per_minute")


def test_an_encoded_prompt_is_read_once_and_costs_what_a_prompt_costs() -> None:
    async def scenario() -> None:
        observed, clock = Observed(), ManualClock()
        spent = []
        for encoding in (None, EncodingRequest("p"), EncodingRequest("p", 130)):
            model = FakeTarget(encoding_width=6)
            runner = runner_of(model, chunk_tokens=CHUNK)
            admission = Admission(LimitsConfig(), QuotasConfig(), None, clock)
            supervisor = supervisor_of(runner, model, Observers([observed]), admission)
            prompt, committed = tuple(range(60)) * 3, (7,) * 21
            opening = Open(SessionId("s"), "digest", SAMPLED, 40, (), prompt, committed, encoding=encoding)
            read = asyncio.Event()
            frames: list[ServerFrame] = []

            async def stream(opening: Open = opening, read: asyncio.Event = read) -> AsyncIterator[ClientFrame]:
                yield opening
                await read.wait()
                yield Close(len(opening.prompt_token_ids) + len(opening.committed_token_ids), ())

            async for frame in supervisor.supervise(stream()):
                frames.append(frame)
                if isinstance(frame, Opened) and frame.prefilled:
                    read.set()
            await runner.close()
            assert model.tokens_read == 200
            rows = [frame.rows for frame in frames if isinstance(frame, Encoded)]
            if encoding is not None:
                assert sum(map(len, rows)) == 180 - encoding.start
                assert rows[-1].end == 180
            spent.append(used_positions(admission))
        assert spent == [13 + 1] * 3, "one position for sixteen tokens, and one for the Close"
        prefilled = [observation for observation in observed.of(Prefilled) if isinstance(observation, Prefilled)]
        assert [(each.tokens, each.encoded) for each in prefilled] == [(200, 0), (200, 180), (200, 50)]

    run(scenario)


@pytest.mark.parametrize("how", ["with a Close", "by a newer stream"])
def test_a_stream_that_closes_stops_its_encoding(how: str) -> None:
    async def scenario() -> None:
        gate = Gate()
        model = FakeTarget(before_forward=gate, encoding_width=6)
        runner = runner_of(model, chunk_tokens=CHUNK)
        supervisor = supervisor_of(runner, model)
        opening = Open(SessionId("s"), "digest", SAMPLED, 40, (), PROMPT * 5, encoding=EncodingRequest("p"))

        async def stream() -> AsyncIterator[ClientFrame]:
            yield opening
            await gate.until_entered()
            if how == "by a newer stream":
                await asyncio.Event().wait()
            yield Close(200, ())

        async def newer() -> AsyncIterator[ClientFrame]:
            yield Open(SessionId("s"), "digest", SAMPLED, 40, (), (1, 2))
            yield Close(2, ())

        async def replies(frames: AsyncIterator[ClientFrame]) -> list[ServerFrame]:
            return [reply async for reply in supervisor.supervise(frames)]

        older = asyncio.create_task(replies(stream()))
        await gate.until_entered()
        if how == "by a newer stream":
            await replies(newer())
        frames = await older
        gate.opened.set()
        await runner.close()
        first, last = frames
        assert isinstance(first, Opened)
        assert not first.prefilled, "without all rows, the prompt is not reported as read"
        assert isinstance(last, Closed) == (how == "with a Close")
        assert model.tokens_read == CHUNK

    run(scenario)
