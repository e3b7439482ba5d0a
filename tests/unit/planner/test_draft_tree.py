"""The draft tree: the value of branches, and their outcomes after verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chaperone_common.token_tree import BranchToken
from chaperone_common.types import Proposal, Signal
from edge_client.planner.draft_tree import DraftTree

EOS = 0
HIT = 0.5


def proposal(token_id: int, risk: float, runner_up: int = 99) -> Proposal:
    return Proposal(token_id, Signal(1.0, 0.5, 0.1, 1.0, risk), runner_up)


class Tree(DraftTree):
    """A tree above a text made by hand."""

    def __init__(self, rows: int, *, limit: int, risk: Callable[[float], float] = lambda raw: raw) -> None:
        self.text: dict[int, Proposal] = {}
        super().__init__(rows, self.text.get, limit=limit, eos_token_ids=(EOS,), risk=risk, hit=lambda: HIT)

    def draft(self, position: int, proposal: Proposal) -> None:
        self.text[position] = proposal
        self.add(position)


def tree_of(risks: Sequence[float], *, rows: int = 2, limit: int = 100, first: int = 10) -> Tree:
    """Return a text whose tokens from `first` on were proposed at these risks, taken as chances unchanged."""
    tree = Tree(rows, limit=limit)
    for offset, risk in enumerate(risks):
        tree.draft(first + offset, proposal(50 + offset, risk, runner_up=80 + offset))
    return tree


def sites(tree: DraftTree) -> dict[int, Any]:
    return {start: pytest.approx(chance) for chance, start in tree.sites()}


# --- Chances ---------------------------------------------------------------------------------------------------------


def test_the_chance_of_a_branch_is_survival_times_override_by_the_runner_up() -> None:
    tree = tree_of([0.1, 0.5, 0.2])
    assert sites(tree) == {10: 0.1 * HIT, 11: 0.9 * 0.5 * HIT, 12: 0.9 * 0.5 * 0.2 * HIT}


def test_planting_keeps_a_chance_and_each_branch_token_lowers_it() -> None:
    tree = tree_of([0.1, 0.5])
    branch = tree.plant(11)
    assert (branch.first, branch.unread) == (81, 81)
    assert sites(tree)[11] == 0.9 * 0.5 * HIT
    tree.grow(11, proposal(60, 0.25))
    tree.grow(11, proposal(61, 0.5))
    assert branch.unread == 61
    assert sites(tree)[11] == 0.9 * 0.5 * HIT * 0.75 * 0.5


def test_confirmed_tokens_before_a_branch_make_it_likelier() -> None:
    tree = tree_of([0.6, 0.5])
    tree.plant(11)
    tree.settle(11)
    assert sites(tree) == {11: 0.5 * HIT}


def test_chances_use_the_correction_at_the_time_of_the_draft() -> None:
    tree = Tree(1, limit=100, risk=lambda raw: raw / 2)
    tree.draft(4, proposal(50, 0.8))
    assert tree.risk(4) == pytest.approx(0.4)
    assert tree.risk(5) == 0.0, "nothing was proposed there"
    assert sites(tree) == {4: 0.4 * HIT}


def test_without_rows_there_are_no_branch_sites() -> None:
    assert list(tree_of([0.5, 0.5], rows=0).sites()) == []


# --- Ends ------------------------------------------------------------------------------------------------------------


def test_a_branch_at_end_of_text_does_not_grow() -> None:
    tree = tree_of([0.5])
    tree.plant(10)
    tree.grow(10, proposal(EOS, 0.1))
    assert list(tree.sites()) == []
    assert tree.take(10, 80) is not None, "but it may still become the text"


def test_a_branch_never_begins_with_end_of_text() -> None:
    tree = tree_of([0.5])
    tree.draft(11, proposal(51, 0.5, runner_up=EOS))
    assert list(sites(tree)) == [10]


def test_branches_end_at_the_limit_of_the_text() -> None:
    tree = tree_of([0.5, 0.5, 0.5], limit=13)
    assert list(sites(tree)) == [10, 11], "an override of the last token leaves nothing to draft"
    tree.plant(11)
    tree.grow(11, proposal(60, 0.1))
    assert list(sites(tree)) == [10]


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_the_least_likely_branch_is_displaced() -> None:
    tree = tree_of([0.5, 0.1, 0.8], rows=2)
    tree.plant(10)
    evicted = tree.plant(11).row
    assert tree.plant(12).row == evicted
    assert set(tree.branches) == {10, 12}


def test_a_longer_branch_is_displaced_first() -> None:
    tree = tree_of([0.5, 0.4, 0.8], rows=2)
    tree.plant(10)
    tree.plant(11)
    for token_id in range(60, 64):
        tree.grow(10, proposal(token_id, 0.5))
    tree.plant(12)
    assert set(tree.branches) == {11, 12}


def test_confirmed_tokens_before_a_branch_keep_it_from_displacement() -> None:
    tree = tree_of([0.9, 0.9, 0.2, 0.5], rows=2)
    tree.plant(11)  # planted while it was unlikely to be reached
    tree.settle(11)
    tree.plant(12)
    tree.plant(13)
    assert set(tree.branches) == {11, 13}


# --- Verdicts --------------------------------------------------------------------------------------------------------


def test_a_foreseen_override_takes_its_branch_and_frees_every_row() -> None:
    tree = tree_of([0.5, 0.5], rows=2)
    tree.plant(10)
    branch = tree.plant(11)
    tree.grow(11, proposal(60, 0.1))
    assert tree.take(11, 81) is branch
    assert [grown.token_id for grown in branch.proposals] == [60]
    assert tree.branches == {}
    assert {tree.plant(10).row, tree.plant(11).row} == {1, 2}


@pytest.mark.parametrize(("position", "token_id"), [(11, 79), (10, 80), (12, 81)])
def test_an_unforeseen_override_takes_no_branch_and_voids_all(position: int, token_id: int) -> None:
    tree = tree_of([0.5, 0.5, 0.5])
    tree.plant(11)
    assert tree.take(position, token_id) is None
    assert tree.branches == {}


def test_a_cut_voids_proposals_and_branches_from_there_on() -> None:
    tree = tree_of([0.1, 0.2, 0.3])
    tree.plant(10)
    tree.plant(11)
    tree.cut(11)
    assert [tree.proposal(position) is None for position in (10, 11, 12)] == [False, True, True]
    assert list(sites(tree)) == [10]
    assert set(tree.branches) == {10}


def test_judged_positions_are_dropped_with_their_branches() -> None:
    tree = tree_of([0.1, 0.2, 0.3])
    tree.plant(10)
    tree.plant(12)
    tree.settle(11)
    assert [tree.proposal(position) is None for position in (10, 11, 12)] == [True, False, False]
    assert set(tree.branches) == {12}


# --- Spans -----------------------------------------------------------------------------------------------------------


def grown(tree: DraftTree, start: int, *token_ids: int) -> None:
    tree.plant(start)
    for token_id in token_ids:
        tree.grow(start, proposal(token_id, 0.1))


def test_branch_tokens_follow_the_chain_and_each_other_by_absolute_indices() -> None:
    tree = tree_of([0.5, 0.5, 0.5])
    grown(tree, 10, 60, 61)
    grown(tree, 12, 70)
    tokens = tree.branch_tokens(10, 13, [(10, 3), (11, 1), (12, 2)])
    assert tokens == ((9, 80), (13, 60), (14, 61), (10, 81), (11, 82), (17, 70))
    assert all(isinstance(token, BranchToken) for token in tokens)


def test_a_prefix_has_at_most_the_wanted_and_drafted_tokens() -> None:
    tree = tree_of([0.5, 0.5])
    grown(tree, 10, 60, 61, 62)
    assert tree.branch_tokens(10, 12, [(10, 2)]) == ((9, 80), (12, 60))
    assert tree.branch_tokens(10, 12, [(10, 9)]) == ((9, 80), (12, 60), (13, 61), (14, 62))
    assert tree.branch_tokens(10, 12, [(11, 9)]) == ((10, 81),), "never planted: the runner-up alone"
    assert tree.branch_tokens(10, 12, []) == ()


def test_prefixes_outside_the_span_or_without_a_proposal_give_nothing() -> None:
    tree = tree_of([0.5, 0.5, 0.5, 0.5])
    tree.settle(11)
    assert tree.branch_tokens(10, 13, [(9, 1), (10, 1), (13, 1), (14, 1), (12, 1)]) == ((11, 82),)


def test_no_branch_token_lies_at_or_past_the_limit() -> None:
    tree = tree_of([0.5, 0.5, 0.5], limit=13)
    grown(tree, 11, 60, 61)
    assert tree.branch_tokens(10, 13, [(11, 9), (12, 9)]) == ((10, 81), (13, 60), (11, 82))


def test_the_chances_of_a_branch_are_listed_token_by_token() -> None:
    tree = tree_of([0.1, 0.5])
    assert tree.chances(11) == pytest.approx([0.5 * HIT]), "not planted: the runner-up's"
    tree.plant(11)
    tree.grow(11, proposal(60, 0.25))
    tree.grow(11, proposal(61, 0.5))
    assert tree.chances(11) == pytest.approx([0.5 * HIT, 0.5 * HIT * 0.75, 0.5 * HIT * 0.75 * 0.5])


def test_rows_are_free_until_branches_take_them() -> None:
    tree = tree_of([0.5, 0.6, 0.7], rows=2)
    assert tree.free_rows == 2
    tree.plant(10)
    tree.plant(11)
    assert tree.free_rows == 0
    tree.plant(12)
    assert tree.free_rows == 0
    tree.cut(10)
    assert tree.free_rows == 2


# --- Random events ---------------------------------------------------------------------------------------------------


class TreeMachine(RuleBasedStateMachine):
    """Drafts, branches and verdicts in any order."""

    ROWS = 3

    def __init__(self) -> None:
        super().__init__()
        self.tree = tree_of([], rows=self.ROWS, limit=10_000)
        self.final = self.length = 10

    @rule(token_id=st.integers(0, 5), risk=st.floats(0.0, 1.0), runner_up=st.integers(0, 5))
    def draft(self, token_id: int, risk: float, runner_up: int) -> None:
        self.tree.draft(self.length, proposal(token_id, risk, runner_up))
        self.length += 1

    @precondition(lambda self: any(self.tree.sites()))
    @rule(data=st.data(), token_id=st.integers(0, 5), risk=st.floats(0.0, 1.0))
    def branch(self, data: st.DataObject, token_id: int, risk: float) -> None:
        start = data.draw(st.sampled_from([start for _, start in self.tree.sites()]))
        if start not in self.tree.branches:
            self.tree.plant(start)
        self.tree.grow(start, proposal(token_id, risk))

    @precondition(lambda self: self.final < self.length)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        self.final = data.draw(st.integers(self.final, self.length))
        self.tree.settle(self.final)

    @precondition(lambda self: self.final < self.length)
    @rule(data=st.data(), token_id=st.integers(0, 5))
    def override(self, data: st.DataObject, token_id: int) -> None:
        position = data.draw(st.integers(self.final, self.length - 1))
        self.tree.settle(position)
        expected = self.tree.branches.get(position)
        branch = self.tree.take(position, token_id)
        assert branch is (expected if expected is not None and expected.first == token_id else None)
        self.tree.cut(position)
        self.final = self.length = position + 1

    @invariant()
    def rows_are_neither_shared_nor_lost(self) -> None:
        rows = [branch.row for branch in self.tree.branches.values()]
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(range(1, self.ROWS + 1))

    @invariant()
    def branches_begin_where_a_proposal_is_open(self) -> None:
        assert all(self.final <= start < self.length for start in self.tree.branches)
        assert all(branch.start == start for start, branch in self.tree.branches.items())

    @invariant()
    def sites_are_open_positions_and_their_chances_are_chances(self) -> None:
        found = [start for _, start in self.tree.sites()]
        assert found == sorted(set(found))
        assert all(self.final <= start < self.length for start in found)
        assert all(0.0 <= chance <= 1.0 for chance, _ in self.tree.sites())

    @invariant()
    def branch_tokens_spell_the_text_and_then_a_branch(self) -> None:
        """Check that the ancestors of a branch's last token are the branch, then the chain before it."""
        opened = [found for at in range(self.final, self.length) if (found := self.tree.proposal(at))]
        assert len(opened) == self.length - self.final
        texts: list[tuple[int, ...]] = [()]
        for token in opened:
            texts.append((*texts[-1], token.token_id))
        prefixes = [(self.final + index, 3) for index in range(len(opened))]
        for branch_token in self.tree.branch_tokens(self.final, self.length, prefixes):
            texts.append((*texts[branch_token.parent + 1 - self.final], branch_token.token_id))
        for index, token in enumerate(opened):
            branch = self.tree.branches.get(self.final + index)
            after = [proposed.token_id for proposed in branch.proposals[:2]] if branch is not None else []
            wanted = list(takewhile(lambda token_id: token_id != EOS, [token.runner_up, *after]))
            assert not wanted or (*texts[index], *wanted) in texts[len(opened) + 1 :]

    def teardown(self) -> None:
        """Check that every row can be used again."""
        self.tree.take(self.length, 0)
        self.tree.cut(0)
        for position in range(self.ROWS):
            self.tree.draft(position, proposal(1, 0.5))
        assert {self.tree.plant(position).row for position in range(self.ROWS)} == set(range(1, self.ROWS + 1))


TestTreeMachine = TreeMachine.TestCase


def test_two_branches_do_not_alternate_forever_on_one_row() -> None:
    tree = tree_of([0.4, 0.4], rows=1)
    for _ in range(100):
        chance, start = max(tree.sites(), default=(0.0, -1))
        if chance < 0.01:
            return
        if start not in tree.branches:
            tree.plant(start)
        tree.grow(start, proposal(60, 0.5))
    pytest.fail("a branch always seems worth drafting")
