"""Behind the chain, branch tokens stand by the same rule: each if and only if it is the cloud's own choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.types import BranchToken
from chaperone_common.verification import Judgement, walk_on

EOS = 9
# Beside a chain of two tokens: 3 and 4 follow its first token, 5 follows 3, 6 follows 5, 7 follows the whole chain.
TREE = (BranchToken(1, 5), BranchToken(1, 6), BranchToken(3, 7), BranchToken(5, 8), BranchToken(2, 5))


def judged(stands: int, token_id: int) -> Judgement:
    return Judgement(stands, token_id, ())


@pytest.mark.parametrize(
    ("judgement", "choices", "further"),
    [
        (judged(1, 4), [1, 2, 3, 4, 5], ()),  # matches no branch
        (judged(0, 5), [1, 2, 3, 4, 5], ()),  # matches one elsewhere
        (judged(1, 5), [1, 2, 3, 4, 5], (1,)),
        (judged(1, 6), [1, 2, 3, 4, 5], (2,)),
        (judged(1, 5), [7, 2, 3, 4, 5], (7, 3)),
        (judged(1, 5), [7, 2, 8, 4, 5], (7, 8, 4)),
        (judged(1, 6), [1, 7, 8, 4, 5], (7,)),  # the 7 follows the 5, not the 6
        (judged(2, 5), [1, 2, 3, 4, 5], (5,)),
        (judged(1, 5), [EOS, 2, 8, 4, 5], (EOS,)),
        (judged(1, 5), [7, 2, EOS, 4, 5], (7, EOS)),
    ],
)
def test_walks_by_example(judgement: Judgement, choices: list[int], further: tuple[int, ...]) -> None:
    assert walk_on(TREE, choices, judgement, length=3, eos_token_ids={EOS}) == further


def test_nothing_follows_an_end_of_text() -> None:
    branches = (BranchToken(1, EOS), BranchToken(2, 5))
    assert walk_on(branches, [5, 6], judged(1, EOS), length=2, eos_token_ids={EOS}) == ()
    assert walk_on(branches, [5, 6], judged(1, EOS), length=2) == (5, 6), "no id ends the text here"


def test_without_branches_nothing_follows() -> None:
    assert walk_on((), (), judged(3, 5), length=5) == ()


def test_of_siblings_with_one_id_the_first_counts() -> None:
    branches = (BranchToken(0, 5), BranchToken(0, 5), BranchToken(2, 6))
    assert walk_on(branches, [6, 6, 7], judged(0, 5), length=1) == (6,)


@pytest.mark.parametrize("choices", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], []])
def test_a_choice_too_few_or_too_many_is_refused(choices: list[int]) -> None:
    with pytest.raises(ValueError, match=f"5 branch tokens need as many choices, got {len(choices)}"):
        walk_on(TREE, choices, judged(1, 5), length=3)


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, list[BranchToken]]:
    """A chain's length, and branches beside it of which no two siblings have the same id."""
    chain = draw(st.integers(0, 3))
    branches: list[BranchToken] = []
    for _ in range(draw(st.integers(0, 12))):
        branch = BranchToken(draw(st.integers(0, chain + len(branches))), draw(st.integers(0, 2)))
        if branch not in branches:
            branches.append(branch)
    return chain, branches


@given(tree=trees(), stands=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_the_walk_writes_what_the_cloud_would_write(
    tree: tuple[int, list[BranchToken]], stands: int, seed: int
) -> None:
    """The oracle knows texts only: while the text so far is that of a branch token, the cloud's next choice follows."""
    chain, branches = tree
    stands = min(stands, chain)

    def choice(text: tuple[int, ...]) -> int:
        return hash((seed, text)) % 4

    texts = [tuple(range(10, 10 + length)) for length in range(chain + 1)]
    for branch in branches:
        texts.append((*texts[branch.parent], branch.token_id))
    text = texts[stands]
    expected = [choice(text)]
    while expected[-1] != 3 and (*text, *expected) in texts[chain + 1 :]:
        expected.append(choice((*text, *expected)))
    further = walk_on(
        branches,
        [choice(text) for text in texts[chain + 1 :]],
        Judgement(stands, expected[0], ()),
        length=chain + 1,
        eos_token_ids={3},
    )
    assert [expected[0], *further] == expected
