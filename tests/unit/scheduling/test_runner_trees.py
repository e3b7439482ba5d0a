"""The runner with token trees: the order of the choices, and the chunk of the branches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from chaperone_common.errors import PromptTooLong
from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import Choice
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.scheduling.runner import ModelRunner
from tests.support.cloud.runner import SAMPLED, error_of, forward, oracle, run, runner_of
from tests.support.fakes.target import FakeTarget

TOKENS = list(range(15))
CHOICES = 6
# Parents from the first to the last of the six tokens, and branch tokens; two siblings follow the first.
BRANCHES = tuple(BranchToken(*pair) for pair in [(9, 30), (9, 31), (15, 32), (12, 33), (17, 34), (14, 35)])


def tree_oracle(
    model: FakeTarget, tokens: Sequence[int], choices: int, branches: Sequence[BranchToken]
) -> list[Choice]:
    """Return the choices of the chain, then of each branch token as the end of a text of its own."""
    texts = TokenTree(tuple(tokens), tuple(branches)).paths()
    return oracle(model, tokens, choices) + [oracle(model, text, 1)[0] for text in texts]


def test_the_choices_of_the_chain_come_first_and_then_those_of_the_branches() -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model)
        result = await forward(runner, "a", TOKENS, CHOICES, SAMPLED, branches=BRANCHES)
        assert result.choices == tree_oracle(model, TOKENS, CHOICES, BRANCHES)
        assert model.forwards == 1
        await runner.close()

    run(scenario)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 4, 14])
def test_branches_are_read_with_the_last_chunk(chunk_tokens: int) -> None:
    async def scenario() -> None:
        fed: list[int] = []
        model = FakeTarget(before_forward=lambda requests: fed.append(len(requests[0].tree.branches)))
        runner = runner_of(model, chunk_tokens=chunk_tokens)
        result = await forward(runner, "a", TOKENS, CHOICES, SAMPLED, branches=BRANCHES)
        assert result.choices == tree_oracle(model, TOKENS, CHOICES, BRANCHES)
        assert fed == [0] * (len(fed) - 1) + [len(BRANCHES)]
        assert len(fed) > 1
        assert model.tokens_read == len(TOKENS) + len(BRANCHES)
        await runner.close()

    run(scenario)


def test_accepted_branch_tokens_are_never_read_twice() -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model)
        await forward(runner, "a", TOKENS, CHOICES, SAMPLED, branches=BRANCHES)
        text = [*TOKENS[:10], 30, 32, 34, 40, 41]  # the accepted branch, and two tokens after it
        before = model.tokens_read
        result = await forward(runner, "a", text, 2, SAMPLED, branches=[BranchToken(len(text) - 1, 50)])
        assert model.tokens_read == before + 3
        assert result.choices == tree_oracle(model, text, 2, [BranchToken(len(text) - 1, 50)])
        await runner.close()

    run(scenario)


def test_the_context_limits_depth_and_the_memory_limits_all_tokens() -> None:
    async def scenario() -> None:
        runner = runner_of(FakeTarget(context_tokens=4), budget_tokens=8)
        wide = [BranchToken(2, token_id) for token_id in range(5)]
        assert len((await forward(runner, "a", [1, 2, 3], 2, SAMPLED, branches=wide)).choices) == 7
        deep = [BranchToken(2, 9), BranchToken(3, 9)]
        refused = await error_of(forward(runner, "a", [1, 2, 3], 2, SAMPLED, branches=deep))
        assert isinstance(refused, PromptTooLong)
        assert refused.message == "5 tokens; the context holds 4"
        assert isinstance(
            await error_of(forward(runner, "b", [1, 2, 3], 1, SAMPLED, branches=[BranchToken(3, 1)])), ValueError
        )
        wide.append(BranchToken(2, 6))
        assert isinstance(await error_of(forward(runner, "a", [1, 2, 3], 2, SAMPLED, branches=wide)), PromptTooLong)
        await runner.close()

    run(scenario)


def test_branches_without_a_valid_parent_are_refused() -> None:
    async def scenario() -> None:
        runner = runner_of(FakeTarget())
        error = await error_of(forward(runner, "a", [1, 2], 0, SAMPLED, branches=[BranchToken(0, 1)]))
        assert isinstance(error, ValueError)
        assert "1 in a request without choices" in str(error)
        error = await error_of(forward(runner, "a", [1, 2], 1, SAMPLED, branches=[BranchToken(2, 1)]))
        assert isinstance(error, ValueError)
        assert "token 0 follows number 2 of the 2 tokens before it" in str(error)
        await runner.close()

    run(scenario)


def test_a_failed_forward_of_a_tree_leaves_no_cache() -> None:
    async def scenario() -> None:
        def fail(requests: Sequence[ForwardRequest]) -> None:
            if requests[0].tree.branches:
                raise RuntimeError("out of memory")

        model = FakeTarget(before_forward=fail)
        runner = runner_of(model, chunk_tokens=4)
        assert isinstance(
            await error_of(forward(runner, "a", TOKENS, CHOICES, SAMPLED, branches=BRANCHES)), RuntimeError
        )
        assert runner.kv_stats.bytes_used == 0
        assert (await forward(runner, "a", TOKENS, CHOICES, SAMPLED)).choices == oracle(model, TOKENS, CHOICES)
        await runner.close()

    run(scenario)


def test_evictions_do_not_change_choices_among_many_trees() -> None:
    """Eight conversations continue along their last tree or elsewhere, with room for about three of them."""

    async def converse(runner: ModelRunner, model: FakeTarget, key: int) -> None:
        dice = random.Random(key)
        tokens: tuple[int, ...] = tuple(dice.randrange(64) for _ in range(8))
        for _ in range(15):
            choices = dice.randint(1, len(tokens))
            branches = [
                BranchToken(len(tokens) - choices + dice.randrange(choices + index), dice.randrange(64))
                for index in range(dice.randint(0, 6))
            ]
            result = await forward(runner, key, tokens, choices, SAMPLED, branches=branches)
            assert result.choices == tree_oracle(model, tokens, choices, branches)
            text = dice.choice([tokens, *TokenTree(tuple(tokens), tuple(branches)).paths()])
            kept = dice.randint(max(1, len(text) - 3), len(text))
            tokens = (*text[:kept], *(dice.randrange(64) for _ in range(dice.randint(1, 5))))

    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model, budget_tokens=100, chunk_tokens=9)
        await asyncio.gather(*(converse(runner, model, key) for key in range(8)))
        stats = runner.kv_stats
        assert stats.evictions > 8
        assert stats.bytes_used <= stats.budget_bytes
        await runner.close()

    run(scenario)
