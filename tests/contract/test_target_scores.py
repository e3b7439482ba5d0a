"""The contract of every `TargetModel` for scores, for the fake and for torch with the tiny pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from chaperone_common.beams.scoring import NodeScores, Scores, Scoring
from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.model.ports import ForwardRequest, Found, TargetModel
from tests.contract.test_target_trees import BRANCHES, CHAIN, prompt
from tests.support.cloud.forward import feeding
from tests.support.models.contract_targets import GREEDY, SAMPLED, TRUNCATED

TEXT = (*prompt(4, 6), CHAIN[0])
LISTED = ((1, 2, 3), (), (9,), (4, 30), (5, 6, 7), (8,))


def scoring(
    cache: SlotCache,
    tokens: Sequence[int],
    sampling: SamplingParams,
    asked: Scoring,
    branches: Sequence[BranchToken] = (),
) -> ForwardRequest:
    tree = TokenTree(tuple(tokens), tuple(branches), cache.length)
    return ForwardRequest(cache, tree, 1, sampling, scoring=asked)


def nodes_of(found: Found) -> tuple[NodeScores, ...]:
    assert isinstance(found, Scores)
    return found.nodes


def assert_close(found: NodeScores, expected: NodeScores) -> None:
    """Assert equality up to rounding, which may also choose another token at a near tie."""
    for own, other in zip(found.listed, expected.listed, strict=True):
        assert own.token_id == other.token_id
        assert np.exp(own.log_p) == pytest.approx(np.exp(other.log_p), abs=0.02)
        assert own.logprob == pytest.approx(other.logprob, abs=0.2)
    assert found.other_mass == pytest.approx(expected.other_mass, abs=0.02)
    assert len(found.others) == len(expected.others)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, TRUNCATED])
def test_a_branch_token_is_scored_as_its_path_is_as_a_chain(target: TargetModel, sampling: SamplingParams) -> None:
    branches = [BranchToken(len(TEXT) - 1 + parent, token) for parent, token in ((0, 30), (0, 31), (1, 32))]
    paths = [TEXT, (*TEXT, 30), (*TEXT, 31), (*TEXT, 30, 32)]
    asked = Scoring(LISTED[:4], (0, 1, 2, 3), 3)
    [found] = target.step([scoring(target.kv_pool.new_cache(), TEXT, sampling, asked, branches)])
    for node, path, listed, scores in zip(asked.nodes, paths, asked.listed, nodes_of(found), strict=True):
        alone = Scoring((listed,), (node,), 3)
        [expected] = target.step([scoring(target.kv_pool.new_cache(), path, sampling, alone)])
        assert_close(scores, nodes_of(expected)[0])


def test_scores_do_not_depend_on_the_company(target: TargetModel) -> None:
    asked = Scoring(((1, 2),), (0,), 2)
    [alone] = target.step([scoring(target.kv_pool.new_cache(), TEXT, SAMPLED, asked)])
    others = [
        feeding(target.kv_pool.new_cache(), prompt(7, 9), 2, SAMPLED),
        feeding(target.kv_pool.new_cache(), prompt(8, 5), 0, SAMPLED),
        scoring(target.kv_pool.new_cache(), prompt(9, 4), GREEDY, Scoring(((3,),), (5,), 1)),
    ]
    chosen, read, greedy, found = target.step([*others, scoring(target.kv_pool.new_cache(), TEXT, SAMPLED, asked)])
    assert isinstance(chosen, list)
    assert len(chosen) == 2
    assert read == []
    assert len(nodes_of(greedy)) == 1
    assert_close(nodes_of(found)[0], nodes_of(alone)[0])


def test_choices_are_the_same_next_to_scores(target: TargetModel) -> None:
    [alone] = target.forward([feeding(target.kv_pool.new_cache(), TEXT, 3, SAMPLED)])
    [found, _] = target.step(
        [
            feeding(target.kv_pool.new_cache(), TEXT, 3, SAMPLED),
            scoring(target.kv_pool.new_cache(), prompt(9, 4), SAMPLED, Scoring(((3,),), (5,), 1)),
        ]
    )
    assert isinstance(found, list)
    assert [choice.token_id for choice in found] == [choice.token_id for choice in alone]


def test_a_text_continues_along_a_scored_branch(target: TargetModel) -> None:
    before = (*TEXT[:-1], *CHAIN)
    cache = target.kv_pool.new_cache()
    nodes = tuple(range(1 + len(BRANCHES)))
    asked = Scoring(((),) * len(nodes), nodes, 1)
    shifted = [BranchToken(len(before) - len(CHAIN) - 1 + parent, token) for parent, token in BRANCHES]
    target.step([scoring(cache, before, SAMPLED, asked, shifted)])
    assert cache.length == len(before) + len(BRANCHES)
    cache.crop(len(before))
    [found] = target.step([scoring(cache, (9,), SAMPLED, Scoring(((1,),), (0,), 1))])
    fresh = scoring(target.kv_pool.new_cache(), (*before, 9), SAMPLED, Scoring(((1,),), (0,), 1))
    [expected] = target.step([fresh])
    assert_close(nodes_of(found)[0], nodes_of(expected)[0])


@pytest.mark.parametrize(
    ("asked", "choices", "branches", "encoded"),
    [
        (Scoring(((1,),), (0,), 1), 2, 0, False),
        (Scoring(((1,),), (0,), 1), 0, 0, False),
        (Scoring(((1,),), (0,), 1), 1, 1, False),
        (Scoring(((1,), (2,)), (0,), 1), 1, 1, False),
        (Scoring(((1,),), (0,), 1), 1, 0, True),
        (Scoring(((1,),), (0,), -1), 1, 0, False),
        (Scoring(((10**6,),), (0,), 1), 1, 0, False),
        (Scoring(((-1,),), (0,), 1), 1, 0, False),
    ],
)
def test_an_impossible_request_for_scores_is_refused(
    target: TargetModel, asked: Scoring, choices: int, branches: int, encoded: bool
) -> None:
    cache = target.kv_pool.new_cache()
    tree = TokenTree(TEXT, (BranchToken(0, 1),) * branches)
    request = ForwardRequest(cache, tree, choices, SAMPLED, encoded=encoded, scoring=asked)
    with pytest.raises(ValueError, match=r"scoring: "):
        target.step([request])
    assert cache.length == 0


def test_forward_returns_choices_alone(target: TargetModel) -> None:
    with pytest.raises(ValueError, match="`forward` returns choices; use `step`"):
        target.forward([scoring(target.kv_pool.new_cache(), TEXT, SAMPLED, Scoring(((1,),), (0,), 1))])
