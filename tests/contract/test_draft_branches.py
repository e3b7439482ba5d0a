"""The contract of `DraftModel` for branches, tested with the fake and with onnxruntime and the tiny pair."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from numpy.typing import NDArray

from chaperone_common.errors import InvalidRequest, PromptTooLong
from edge_client.ports import TEXT_ROW, DraftModel
from tests.support.models.contract_drafts import (
    CONTEXT_TOKENS,
    NewSequence,
    close_to,
    fresh_logits,
    logits_after,
    tokens,
)

BRANCHES = 4


async def feed_row(sequence: DraftModel, row: int, token_ids: Sequence[int]) -> NDArray[np.float32]:
    for token_id in token_ids:
        step = (await sequence.step_rows({row: token_id}))[row]
    return step.logits.copy()


@pytest.mark.parametrize("length", [0, 1, 20, 40])
def test_a_branch_continues_from_its_fork(new_sequence: NewSequence, length: int) -> None:
    async def scenario() -> None:
        prompt, other = tokens(20, 40), tokens(21, 3)
        sequence = new_sequence(branches=2)
        assert sequence.branches == 2
        await sequence.step(prompt)
        sequence.fork(2, length)
        expected = await fresh_logits(new_sequence, prompt[:length] + other)
        assert close_to(await feed_row(sequence, 2, other), expected)
        assert sequence.length == 40
        last = await logits_after(sequence, [5])
        assert close_to(last, await fresh_logits(new_sequence, [*prompt, 5]))

    asyncio.run(scenario())


def test_rows_of_one_forward_equal_single_rows(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        prompt = tokens(22, 30)
        texts = {0: prompt, 1: prompt[:12], 2: prompt[:30], 3: [], 4: prompt[:29]}
        sequence = new_sequence(branches=4)
        await sequence.step(prompt)
        for branch in (1, 2, 3, 4):
            sequence.fork(branch, len(texts[branch]))
        for seed, rows in enumerate([(0, 1), (0, 2), (1,), (1, 2), (0, 4), (3, 4), (2, 0, 1), (0, 1, 2, 3, 4), (3, 0)]):
            fed = dict(zip(rows, tokens(100 + seed, len(rows)), strict=True))
            steps = await sequence.step_rows(fed)
            assert list(steps) == list(rows)
            for row, token_id in fed.items():
                texts[row] = [*texts[row], token_id]
                assert close_to(steps[row].logits, await fresh_logits(new_sequence, texts[row]))
                assert steps[row].logits.dtype == np.float32
        assert sequence.length == len(texts[0])

    asyncio.run(scenario())


@pytest.mark.parametrize("written", [0, 2, 9])
def test_an_adopted_branch_is_the_text(new_sequence: NewSequence, written: int) -> None:
    """The text has written fewer, as many or more tokens than the branch since the fork."""

    async def scenario() -> None:
        prompt, own, other = tokens(23, 20), tokens(24, 4), tokens(25, 3)
        sequence = new_sequence(branches=2)
        await sequence.step(prompt)
        sequence.fork(1, 18)
        sequence.fork(2, 20)
        for token_id in tokens(26, written):
            await sequence.step([token_id])
        await feed_row(sequence, 1, own)
        sequence.adopt(1)
        text = prompt[:18] + own
        assert sequence.length == len(text)
        expected = await fresh_logits(new_sequence, text + other)
        assert close_to(await logits_after(sequence, other), expected)
        assert close_to(await feed_row(sequence, 2, own), await fresh_logits(new_sequence, prompt + own))

    asyncio.run(scenario())


def test_a_branch_survives_a_rewind_of_the_text(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        prompt, other = tokens(27, 20), tokens(28, 6)
        sequence = new_sequence(branches=1)
        await sequence.step(prompt)
        sequence.fork(1, 15)
        sequence.rewind(4)
        await sequence.step(other)
        assert close_to(await feed_row(sequence, 1, [9]), await fresh_logits(new_sequence, [*prompt[:15], 9]))
        sequence.adopt(1)
        assert sequence.length == 16
        assert close_to(await logits_after(sequence, [8]), await fresh_logits(new_sequence, [*prompt[:15], 9, 8]))

    asyncio.run(scenario())


def test_a_fork_after_a_rewind_copies_the_current_text(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        prompt, other = tokens(29, 20), tokens(30, 20)
        sequence = new_sequence(branches=1)
        await sequence.step(prompt)
        sequence.fork(1, 20)
        await feed_row(sequence, 1, [3])
        sequence.rewind(7)
        await sequence.step(other)
        text = prompt[:7] + other
        for length in (25, 6, 27, 12):
            sequence.fork(1, length)
            assert close_to(await feed_row(sequence, 1, [9]), await fresh_logits(new_sequence, [*text[:length], 9]))

    asyncio.run(scenario())


def test_a_fork_after_an_adoption_copies_the_current_text(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        prompt, own = tokens(36, 20), tokens(37, 6)
        sequence = new_sequence(branches=2)
        await sequence.step(prompt)
        sequence.fork(1, 14)
        sequence.fork(2, 20)
        await feed_row(sequence, 1, own)
        sequence.adopt(1)
        await sequence.step(prompt[:6])
        text = prompt[:14] + own + prompt[:6]
        for branch, length in ((2, 20), (1, 25), (2, 17), (1, 26)):
            sequence.fork(branch, length)
            assert close_to(
                await feed_row(sequence, branch, [9]), await fresh_logits(new_sequence, [*text[:length], 9])
            )

    asyncio.run(scenario())


@pytest.mark.parametrize("busy", [False, True])
def test_a_cancelled_step_neither_loses_nor_repeats_forks(new_sequence: NewSequence, busy: bool) -> None:
    """A busy step waits for another sequence's; the other step has begun."""

    async def scenario() -> None:
        prompt = tokens(38, 20)
        sequence = new_sequence(branches=2)
        await sequence.step(prompt)
        sequence.fork(1, 5)
        await feed_row(sequence, 1, [1, 2, 3, 4])
        sequence.fork(2, 20)
        sequence.adopt(1)
        other = asyncio.create_task(new_sequence().step(tokens(39, CONTEXT_TOKENS if busy else 1)))
        await asyncio.sleep(0)
        task = asyncio.create_task(sequence.step_rows({0: 7, 2: 7}))
        await asyncio.sleep(0)  # the step has begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps = await sequence.step_rows({0: 9, 2: 9})
        assert close_to(steps[0].logits, await fresh_logits(new_sequence, [*prompt[:5], 1, 2, 3, 4, 9]))
        assert close_to(steps[2].logits, await fresh_logits(new_sequence, [*prompt, 9]))
        await other

    asyncio.run(scenario())


def test_forks_and_adoptions_before_the_first_step_take_their_turn(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        prompt = tokens(31, 20)
        sequence = new_sequence(branches=2)
        await sequence.step(prompt)
        sequence.fork(1, 10)
        sequence.rewind(5)
        sequence.adopt(1)
        sequence.fork(2, 8)
        sequence.fork(1, 3)
        steps = await sequence.step_rows({0: 7, 1: 7, 2: 7})
        for row, length in ((0, 10), (1, 3), (2, 8)):
            assert close_to(steps[row].logits, await fresh_logits(new_sequence, [*prompt[:length], 7]))

    asyncio.run(scenario())


def test_the_context_limits_branches_too(new_sequence: NewSequence) -> None:
    """A full branch stays unchanged while the rows around it continue."""

    async def scenario() -> None:
        prompt = tokens(32, CONTEXT_TOKENS)
        sequence = new_sequence(branches=3)
        await sequence.step(prompt[:-1])
        sequence.fork(1, CONTEXT_TOKENS - 1)
        sequence.fork(3, 50)
        await sequence.step_rows({1: 7})
        with pytest.raises(PromptTooLong, match=rf"{CONTEXT_TOKENS + 1} tokens.*{CONTEXT_TOKENS}"):
            await sequence.step_rows({0: 1, 1: 2})
        assert sequence.length == CONTEXT_TOKENS - 1
        steps = await sequence.step_rows({0: 8, 3: 8})
        assert close_to(steps[0].logits, await fresh_logits(new_sequence, [*prompt[:-1], 8]))
        assert close_to(steps[3].logits, await fresh_logits(new_sequence, [*prompt[:50], 8]))
        sequence.adopt(1)
        assert sequence.length == CONTEXT_TOKENS
        sequence.rewind(CONTEXT_TOKENS - 1)
        assert close_to(await logits_after(sequence, [7]), await fresh_logits(new_sequence, [*prompt[:-1], 7]))

    asyncio.run(scenario())


def test_impossible_branch_operations_are_refused(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence(branches=2)
        await sequence.step(tokens(33, 6))
        for branch, length, message in [
            (0, 1, "no branch 0.* 2"),
            (3, 1, "no branch 3.* 2"),
            (1, 7, "7"),
            (1, -1, "-1"),
        ]:
            with pytest.raises(ValueError, match=rf"fork: .*{message}"):
                sequence.fork(branch, length)
        for branch in (1, 3, -1):
            with pytest.raises(ValueError, match=rf"adopt: branch {branch} is not forked"):
                sequence.adopt(branch)
            with pytest.raises(ValueError, match=rf"step_rows: branch {branch} is not forked"):
                await sequence.step_rows({0: 1, branch: 1})
        with pytest.raises(ValueError, match="the text itself"):
            sequence.adopt(TEXT_ROW)
        with pytest.raises(ValueError, match="step_rows: no tokens"):
            await sequence.step_rows({})
        sequence.fork(1, 3)
        for token_id in (-1, 10**7):
            with pytest.raises(InvalidRequest, match="outside"):
                await sequence.step_rows({0: 1, 1: token_id})
        sequence.adopt(1)
        with pytest.raises(ValueError, match="branch 1 .* was adopted"):
            await sequence.step_rows({1: 1})
        assert sequence.length == 3

    asyncio.run(scenario())


def test_a_sequence_without_branches_holds_the_text_alone(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence()
        assert sequence.branches == 0
        steps = await sequence.step_rows({TEXT_ROW: 5})
        assert close_to(steps[TEXT_ROW].logits, await fresh_logits(new_sequence, [5]))
        assert sequence.length == 1
        with pytest.raises(ValueError, match="no branch 1"):
            sequence.fork(1, 1)

    asyncio.run(scenario())


def test_nothing_is_forked_or_adopted_during_a_step_or_after_the_end(new_sequence: NewSequence) -> None:
    async def scenario() -> None:
        sequence = new_sequence(branches=2)
        await sequence.step(tokens(34, 4))
        sequence.fork(1, 4)
        actions: list[Callable[[], object]] = [lambda: sequence.fork(2, 1), lambda: sequence.adopt(1)]
        task = asyncio.create_task(sequence.step_rows({0: 1, 1: 2}))
        await asyncio.sleep(0)
        for action in actions:
            with pytest.raises(RuntimeError, match="another step"):
                action()
        with pytest.raises(RuntimeError, match="another step"):
            await sequence.step_rows({1: 1})
        await task
        sequence.close()
        for action in actions:
            with pytest.raises(RuntimeError, match="closed"):
                action()
        with pytest.raises(RuntimeError, match="closed"):
            await sequence.step_rows({1: 1})

    asyncio.run(scenario())


class BranchingMachine(RuleBasedStateMachine):
    """Drive a sequence at random, and keep the tokens that each row should hold.

    The text is never rewound into its prompt, so that every later token is fed alone, here and in `expected`.
    """

    def __init__(
        self, sequence: DraftModel, prompt: list[int], expected: Callable[[Sequence[int]], NDArray[np.float32]]
    ) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.sequence = sequence
        self.prompt = prompt
        self.expected = expected
        self.runner.run(sequence.step(prompt))
        self.rows = {TEXT_ROW: list(prompt)}

    def teardown(self) -> None:
        self.sequence.close()
        self.runner.close()

    @invariant()
    def the_length_is_the_text_s(self) -> None:
        assert self.sequence.length == len(self.rows[TEXT_ROW])

    @rule(token_id=st.integers(0, 7))
    @precondition(lambda self: len(self.rows[TEXT_ROW]) < CONTEXT_TOKENS)
    def step(self, token_id: int) -> None:
        self.rows[TEXT_ROW].append(token_id)
        logits = self.runner.run(self.sequence.step([token_id])).logits
        assert close_to(logits, self.expected(self.rows[TEXT_ROW]))

    @rule(data=st.data(), token_id=st.integers(0, 7))
    def step_rows(self, data: st.DataObject, token_id: int) -> None:
        fed = self.draw_rows(data, token_id)
        if any(len(self.rows[row]) == CONTEXT_TOKENS for row in fed):
            with pytest.raises(PromptTooLong):
                self.runner.run(self.sequence.step_rows(fed))
            return
        steps = self.runner.run(self.sequence.step_rows(fed))
        for row, token in fed.items():
            self.rows[row].append(token)
            assert close_to(steps[row].logits, self.expected(self.rows[row])), row

    @rule(data=st.data(), token_id=st.integers(0, 7))
    def cancel(self, data: st.DataObject, token_id: int) -> None:
        fed = self.draw_rows(data, token_id)
        if all(len(self.rows[row]) < CONTEXT_TOKENS for row in fed):
            self.runner.run(self.cancel_step(fed))

    async def cancel_step(self, fed: dict[int, int]) -> None:
        task = asyncio.create_task(self.sequence.step_rows(fed))
        await asyncio.sleep(0)  # the step has begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(len(self.prompt), len(self.rows[TEXT_ROW])))
        self.sequence.rewind(length)
        del self.rows[TEXT_ROW][length:]

    @rule(data=st.data(), branch=st.integers(1, BRANCHES))
    def fork(self, data: st.DataObject, branch: int) -> None:
        length = data.draw(st.integers(len(self.prompt), len(self.rows[TEXT_ROW])))
        self.sequence.fork(branch, length)
        self.rows[branch] = self.rows[TEXT_ROW][:length]

    @rule(data=st.data())
    @precondition(lambda self: len(self.rows) > 1)
    def adopt(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from(sorted(self.rows.keys() - {TEXT_ROW})))
        self.sequence.adopt(branch)
        self.rows[TEXT_ROW] = self.rows.pop(branch)

    def draw_rows(self, data: st.DataObject, token_id: int) -> dict[int, int]:
        rows = data.draw(st.lists(st.sampled_from(sorted(self.rows)), min_size=1, unique=True))
        return {row: (token_id + row) % 8 for row in rows}


@pytest.mark.parametrize("prompt_tokens", [1, 250, CONTEXT_TOKENS - 4])
def test_rows_hold_their_tokens_after_any_order_of_calls(new_sequence: NewSequence, prompt_tokens: int) -> None:
    """The prompts start at the first token, at the growth of the buffers, and near the end of the context."""
    prompt = tokens(35, prompt_tokens)
    alone, held = new_sequence(), list(prompt)
    asyncio.run(alone.step(prompt))
    known: dict[tuple[int, ...], NDArray[np.float32]] = {}

    async def read_alone(token_ids: Sequence[int]) -> NDArray[np.float32]:
        same = next((n for n, pair in enumerate(zip(held, token_ids, strict=False)) if pair[0] != pair[1]), len(held))
        alone.rewind(min(same, len(token_ids) - 1))
        for token_id in token_ids[alone.length :]:
            logits = await logits_after(alone, [token_id])
        held[:] = token_ids
        return logits

    def expected(token_ids: Sequence[int]) -> NDArray[np.float32]:
        key = tuple(token_ids)
        if key not in known:
            known[key] = asyncio.run(read_alone(token_ids))
        return known[key]

    class Machine(BranchingMachine):
        def __init__(self) -> None:
            super().__init__(new_sequence(branches=BRANCHES), prompt, expected)

    run_state_machine_as_test(Machine, settings=settings(max_examples=8, stateful_step_count=30))
