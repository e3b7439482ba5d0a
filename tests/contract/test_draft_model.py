"""The contract of `DraftModel`, tested with the fake and with onnxruntime and the tiny pair."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from chaperone_common.errors import InvalidRequest, PromptTooLong
from edge_client.ports import DraftModel
from tests.support.models.contract_drafts import CONTEXT_TOKENS, NewSequence, close_to, logits_after, tokens


def test_a_step_returns_one_float32_row_and_counts_its_tokens(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence()
        assert (sequence.length, sequence.context_tokens) == (0, CONTEXT_TOKENS)
        first = await logits_after(sequence, tokens(1, 7))
        assert sequence.length == 7
        second = await logits_after(sequence, tokens(2, 1))
        assert sequence.length == 8
        assert first.dtype == np.float32
        assert first.ndim == 1
        assert first.shape == second.shape
        assert np.isfinite(first).all()
        assert not close_to(first, second)

    asyncio.run(scenario())


def test_tokens_fed_together_or_one_by_one_give_the_same_logits(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        prompt = tokens(3, 75)
        together, apart = new_sequence(), new_sequence()
        for token_id in prompt:
            last = await logits_after(apart, [token_id])
        assert close_to(await logits_after(together, prompt), last)

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [0, 1, 33, 75])
def test_reading_returns_the_logits_after_each_token(new_sequence: NewSequence, count: int) -> None:
    async def scenario() -> None:
        prompt, text, other = tokens(3, 9), tokens(6, count), tokens(7, 1)
        reading, stepping = new_sequence(), new_sequence()
        await reading.step(prompt)
        await stepping.step(prompt)
        read = [step.logits.copy() async for step in reading.read(text)]
        stepped = [await logits_after(stepping, [token_id]) for token_id in text]
        assert all(map(close_to, read, stepped))
        assert (len(read), reading.length) == (count, stepping.length)
        assert close_to(await logits_after(reading, other), await logits_after(stepping, other))

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [0, 1, 20, 39, 40])
def test_a_rewound_sequence_equals_a_fresh_one(new_sequence: NewSequence, length: int) -> None:
    async def scenario() -> None:
        prompt, other = tokens(4, 40), tokens(5, 3)
        rewound, fresh = new_sequence(), new_sequence()
        await rewound.step(prompt)
        rewound.rewind(length)
        assert rewound.length == length
        expected = await logits_after(fresh, prompt[:length] + other)
        assert close_to(await logits_after(rewound, other), expected)

    asyncio.run(scenario())


def test_rewinding_forward_is_refused(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence()
        await sequence.step(tokens(6, 4))
        for length in (5, -1):
            with pytest.raises(ValueError, match="rewind"):
                sequence.rewind(length)
        assert sequence.length == 4

    asyncio.run(scenario())


def test_past_the_context_is_refused_with_numbers_and_leaves_the_sequence_usable(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence, fresh = new_sequence(), new_sequence()
        prompt = tokens(7, CONTEXT_TOKENS)
        await sequence.step(prompt[:-1])
        with pytest.raises(PromptTooLong, match=rf"{CONTEXT_TOKENS + 1} tokens.*{CONTEXT_TOKENS}"):
            await sequence.step([1, 2])
        assert sequence.length == CONTEXT_TOKENS - 1
        last = await logits_after(sequence, prompt[-1:])
        assert sequence.length == CONTEXT_TOKENS
        assert close_to(last, await logits_after(fresh, prompt))

    asyncio.run(scenario())


def test_invalid_tokens_are_refused(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence()
        with pytest.raises(ValueError, match="no tokens"):
            await sequence.step([])
        for token_id in (-1, 10**7):
            with pytest.raises(InvalidRequest, match="outside"):
                await sequence.step([1, token_id])
        assert sequence.length == 0

    asyncio.run(scenario())


def test_sequences_are_independent_and_may_run_at_once(new_sequence: NewSequence) -> None:
    async def decode(sequence: DraftModel, prompt: Sequence[int]) -> NDArray[np.float32]:
        for token_id in prompt:
            last = await logits_after(sequence, [token_id])
        return last

    async def scenario() -> None:
        prompts = [tokens(seed, 12) for seed in range(3)]
        alone = [await decode(new_sequence(), prompt) for prompt in prompts]
        at_once = await asyncio.gather(*(decode(new_sequence(), prompt) for prompt in prompts))
        for left, right in zip(alone, at_once, strict=True):
            assert np.array_equal(left, right)

    asyncio.run(scenario())


def test_a_cancelled_step_does_not_count(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence, fresh = new_sequence(), new_sequence()
        prompt, lost, other = tokens(8, 10), tokens(9, 64), tokens(10, 5)
        await sequence.step(prompt)
        for _ in range(3):
            task = asyncio.create_task(sequence.step(lost))
            await asyncio.sleep(0)  # the step has begun
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert sequence.length == len(prompt)
        sequence.rewind(5)
        expected = await logits_after(fresh, prompt[:5] + other)
        assert close_to(await logits_after(sequence, other), expected)

    asyncio.run(scenario())


def test_concurrent_steps_of_one_sequence_are_refused(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence()
        task = asyncio.create_task(sequence.step(tokens(11, 32)))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another step"):
            await sequence.step([1])
        with pytest.raises(RuntimeError, match="under way"):
            sequence.rewind(0)
        await task
        assert sequence.length == 32

    asyncio.run(scenario())


def test_a_closed_sequence_takes_no_more_tokens(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence()
        await sequence.step([1, 2])
        sequence.close()
        sequence.close()
        with pytest.raises(RuntimeError, match="closed"):
            await sequence.step([3])

    asyncio.run(scenario())
