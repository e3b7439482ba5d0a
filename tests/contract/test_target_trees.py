"""The contract of every `TargetModel` for branch tokens, for the fake and for torch with the tiny pair."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from chaperone_common.errors import PromptTooLong
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.model.ports import TargetModel
from tests.support.cloud.forward import feeding
from tests.support.models.contract_targets import CONTEXT_TOKENS, GREEDY, SAMPLED, TRUNCATED, USED_IDS

#   0 - 1 - 2 - 3 - 4 - 5     0 is the token before the chain; the choices begin after it
#   |   |   |   + - 7 - 9
#   |   |   + - 8
#   |   + - 6
#   + - 10 - 11
CHAIN = (20, 21, 22, 23, 24)
BRANCHES = ((1, 30), (3, 31), (2, 32), (7, 33), (0, 34), (10, 35))
PATHS = ((20, 30), (20, 21, 22, 31), (20, 21, 32), (20, 21, 22, 31, 33), (34,), (34, 35))


def prompt(seed: int, length: int) -> tuple[int, ...]:
    dice = random.Random(seed)
    return tuple(dice.randrange(USED_IDS) for _ in range(length))


def branches_after(before: Sequence[int]) -> tuple[BranchToken, ...]:
    """Return the branches next to CHAIN, if it follows these tokens."""
    return tuple(BranchToken(len(before) - 1 + parent, token_id) for parent, token_id in BRANCHES)


def read(
    target: TargetModel,
    cache: SlotCache,
    tokens: Sequence[int],
    choices: int,
    branches: Sequence[BranchToken] = (),
    sampling: SamplingParams = SAMPLED,
) -> list[int]:
    request = feeding(cache, tokens, choices, sampling, branches)
    return [choice.token_id for choice in target.forward([request])[0]]


def chosen(
    target: TargetModel, tokens: Sequence[int], choices: int = 1, sampling: SamplingParams = SAMPLED
) -> list[int]:
    """Feed a chain at once, to a fresh cache."""
    return read(target, target.kv_pool.new_cache(), tokens, choices, (), sampling)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, TRUNCATED])
@pytest.mark.parametrize("ahead", [0, 5, 11])
def test_a_branch_token_chooses_as_its_path_does_as_a_chain(
    target: TargetModel, sampling: SamplingParams, ahead: int
) -> None:
    before = prompt(1, 12)  # its last token is the one before the chain
    expected = chosen(target, before + CHAIN, 6, sampling)
    expected += [chosen(target, before + path, 1, sampling)[0] for path in PATHS]
    cache = target.kv_pool.new_cache()
    if ahead:
        read(target, cache, before + CHAIN, 1)
        cache.crop(ahead)  # as between two rounds
    assert read(target, cache, before[ahead:] + CHAIN, 6, branches_after(before), sampling) == expected
    assert cache.length == 12 + len(CHAIN) + len(BRANCHES)


def test_the_chain_and_the_siblings_do_not_see_each_other(target: TargetModel) -> None:
    before = prompt(2, 9)
    alone = chosen(target, before + CHAIN, 6)
    siblings = [BranchToken(len(before) + 1, token_id) for token_id in (40, 41, 42, 41)]
    choices = read(target, target.kv_pool.new_cache(), before + CHAIN, 6, siblings)
    assert choices[:6] == alone
    assert choices[6:] == [chosen(target, (*before, 20, 21, token_id))[0] for token_id in (40, 41, 42, 41)]
    other = read(
        target,
        target.kv_pool.new_cache(),
        before + CHAIN,
        6,
        [siblings[0], BranchToken(len(before) + 1, 50), siblings[2]],
    )
    assert [other[6], other[8]] == [choices[6], choices[8]]


def test_a_parent_may_have_been_read_before(target: TargetModel) -> None:
    """A text fed in chunks may have the parents of its branches in any chunk."""
    before = prompt(3, 10)
    cache = target.kv_pool.new_cache()
    read(target, cache, before + CHAIN[:2], 3)
    expected = chosen(target, before + CHAIN, 3) + [chosen(target, before + path)[0] for path in PATHS]
    assert read(target, cache, CHAIN[2:], 3, branches_after(before)) == expected


@pytest.mark.parametrize(("indices", "path"), [((14, 16), PATHS[1] + (33,)), ((17,), (34,)), ((17, 18), (34, 35))])
def test_the_selected_path_is_the_text_that_continues(
    target: TargetModel, indices: tuple[int, ...], path: tuple[int, ...]
) -> None:
    before = prompt(4, 8)
    cache = target.kv_pool.new_cache()
    read(target, cache, before + CHAIN, 6, branches_after(before))
    cache.select(8 + len(path) - len(indices), indices)
    assert cache.length == 8 + len(path)
    tail = prompt(5, 4)
    assert read(target, cache, tail, 4) == chosen(target, before + path + tail, 4)
    cache.crop(8 + len(path))
    again = read(target, cache, tail, 1, [BranchToken(8 + len(path) + 3, 1)])
    assert again == chosen(target, before + path + tail) + chosen(target, before + path + tail + (1,))


def test_dropped_branches_leave_no_trace(target: TargetModel) -> None:
    before, tail = prompt(6, 8), prompt(7, 5)
    expected = chosen(target, before + CHAIN[:3] + tail, 5)
    for cut in (True, False):
        cache = target.kv_pool.new_cache()
        read(target, cache, before + CHAIN, 6, branches_after(before))
        if cut:
            cache.crop(11)
        else:
            cache.select(11, ())
        assert cache.length == 11
        assert read(target, cache, tail, 5) == expected


def test_consecutive_trees_choose_as_chains_do(target: TargetModel) -> None:
    """As in a generation: keep a path of the last tree and feed another tree after it, round after round."""
    dice = random.Random(8)
    text, held, cache = prompt(8, 6), 0, target.kv_pool.new_cache()
    for _ in range(8):
        chain = tuple(dice.randrange(USED_IDS) for _ in range(dice.randint(0, 3)))
        paths = [text + chain[:count] for count in range(len(chain) + 1)]
        indices: list[list[int]] = [[] for _ in paths]
        branches: list[BranchToken] = []
        for index in range(dice.randint(1, 5)):
            number = dice.randrange(len(paths))
            branches.append(BranchToken(len(text) - 1 + number, dice.randrange(USED_IDS)))
            paths.append((*paths[number], branches[-1].token_id))
            indices.append([*indices[number], len(text) + len(chain) + index])
        choices = read(target, cache, (text + chain)[held:], len(chain) + 1, branches)
        assert choices == [chosen(target, path)[0] for path in paths]
        stood = dice.randrange(len(paths))
        held = len(paths[stood])
        cache.select(held - len(indices[stood]), indices[stood])
        text = (*paths[stood], choices[stood])


def test_the_context_limits_the_depth_alone(target: TargetModel) -> None:
    tokens = prompt(9, CONTEXT_TOKENS - 1)
    cache = target.kv_pool.new_cache()
    assert len(read(target, cache, tokens, 1, [BranchToken(len(tokens) - 1, token_id) for token_id in (1, 2, 3)])) == 4
    assert cache.length == CONTEXT_TOKENS + 2
    with pytest.raises(PromptTooLong, match=f"the context holds {CONTEXT_TOKENS}"):
        read(
            target,
            target.kv_pool.new_cache(),
            tokens,
            1,
            [BranchToken(len(tokens) - 1, 1), BranchToken(len(tokens), 2)],
        )


@pytest.mark.parametrize("parents", [(3,), (1, 4), (-3,)])
def test_a_parent_that_does_not_come_before_its_child_is_refused(target: TargetModel, parents: tuple[int, ...]) -> None:
    cache = target.kv_pool.new_cache()
    with pytest.raises(ValueError, match="branches: token"):
        read(target, cache, [1, 2, 3], 2, [BranchToken(parent, 1) for parent in parents])
    assert cache.length == 0


@pytest.mark.parametrize(("length", "indices"), [(2, (1,)), (2, (3, 3)), (2, (4, 3)), (2, (5,)), (6, ()), (-1, ())])
def test_only_held_tokens_can_be_selected_and_in_order(
    target: TargetModel, length: int, indices: tuple[int, ...]
) -> None:
    cache = target.kv_pool.new_cache()
    read(target, cache, [1, 2, 3], 1, [BranchToken(2, 1), BranchToken(2, 2)])
    with pytest.raises(ValueError, match=r"select|crop"):
        cache.select(length, indices)
    assert cache.length == 5
