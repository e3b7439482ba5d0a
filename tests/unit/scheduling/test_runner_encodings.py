"""Encodings through the queue: rows of cut texts are joined, and a cache never takes the place of a row."""

from __future__ import annotations

import asyncio
import random

import pytest

from chaperone_common.conditioning import Encoding
from chaperone_common.token_tree import TokenTree
from cloud_supervisor.model.ports import Urgency
from cloud_supervisor.scheduling.runner import ModelRunner
from tests.support.cloud.runner import SAMPLED, forward, oracle, run, runner_of
from tests.support.fakes.target import FakeTarget

WIDTH = 5


async def encode(runner: ModelRunner, key: str, tokens: list[int], rows: int) -> Encoding:
    result = await runner.forward(
        key, TokenTree(tuple(tokens)), rows, SAMPLED, urgency=Urgency.READ, tenant="t", encoded=True
    )
    assert result.choices == []
    assert result.encoding is not None
    return result.encoding


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 100])
def test_the_rows_of_all_chunks_are_joined(chunk_tokens: int) -> None:
    async def scenario() -> None:
        model = FakeTarget(encoding_width=WIDTH)
        runner = runner_of(model, chunk_tokens=chunk_tokens)
        text = [*range(20)]
        assert await encode(runner, "a", text, 13) == model.encoding(text, 7)
        assert model.tokens_read == 20
        assert await encode(runner, "a", text, 13) == model.encoding(text, 7)
        assert model.tokens_read == 33, "rows need their tokens, whatever the cache holds"
        await runner.close()

    run(scenario)


def test_a_text_of_another_session_is_shared_up_to_the_first_row() -> None:
    async def scenario() -> None:
        model = FakeTarget(encoding_width=WIDTH)
        runner = runner_of(model)
        text = [*range(48)]
        await encode(runner, "a", text, 1)
        read = model.tokens_read
        assert await encode(runner, "b", text, 10) == model.encoding(text, 38)
        assert model.tokens_read - read == 10, "what the first session read is shared, but not beyond the first row"
        await runner.close()

    run(scenario)


def test_encodings_among_verifications_that_evict_each_other() -> None:
    async def scenario() -> None:
        model = FakeTarget(encoding_width=WIDTH)
        runner = runner_of(model, budget_tokens=70, chunk_tokens=8, step_tokens=16, max_queue=99)
        dice = random.Random(5)

        async def session(number: int) -> None:
            text = [dice.randrange(64) for _ in range(30)]
            for _ in range(6):
                length = dice.randint(1, 30)
                wanted = dice.randint(1, length)
                if dice.random() < 0.5:
                    expected = model.encoding(text[:length], length - wanted)
                    assert await encode(runner, f"s{number}", text[:length], wanted) == expected
                else:
                    result = await forward(runner, f"s{number}", text[:length], wanted)
                    assert result.choices == oracle(model, text[:length], wanted)

        await asyncio.gather(*(session(number) for number in range(6)))
        assert runner.kv_stats.evictions > 0
        await runner.close()

    run(scenario)
