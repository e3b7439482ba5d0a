"""After the chain, branch tokens stand by the same rule: each if and only if it is the cloud's own choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.session.verification import follow_branches
from chaperone_common.token_tree import BranchToken, TokenTree

EOS = 9
# Next to a chain of two tokens, after a text of one: 3 and 4 follow index 1, 5 follows 3, 6 follows 5, 7 follows 2.
TREE = TokenTree(
    (10, 11, 12), (BranchToken(1, 5), BranchToken(1, 6), BranchToken(3, 7), BranchToken(5, 8), BranchToken(2, 5))
)


@pytest.mark.parametrize(
    ("position", "token_id", "choices", "further"),
    [
        (2, 4, [1, 2, 3, 4, 5], ()),  # matches no branch
        (1, 5, [1, 2, 3, 4, 5], ()),  # matches a branch elsewhere
        (2, 5, [1, 2, 3, 4, 5], (1,)),
        (2, 6, [1, 2, 3, 4, 5], (2,)),
        (2, 5, [7, 2, 3, 4, 5], (7, 3)),
        (2, 5, [7, 2, 8, 4, 5], (7, 8, 4)),
        (2, 6, [1, 7, 8, 4, 5], (7,)),  # the 7 follows the 5, not the 6
        (3, 5, [1, 2, 3, 4, 5], (5,)),
        (2, 5, [EOS, 2, 8, 4, 5], (EOS,)),
        (2, 5, [7, 2, EOS, 4, 5], (7, EOS)),
    ],
)
def test_walks_by_example(position: int, token_id: int, choices: list[int], further: tuple[int, ...]) -> None:
    assert follow_branches(TREE, choices, position=position, token_id=token_id, eos_token_ids={EOS}) == further


def test_nothing_follows_an_end_of_text() -> None:
    tree = TokenTree((1, 2), (BranchToken(1, EOS), BranchToken(2, 5)))
    assert follow_branches(tree, [5, 6], position=2, token_id=EOS, eos_token_ids={EOS}) == ()
    assert follow_branches(tree, [5, 6], position=2, token_id=EOS) == (5, 6), "no id ends the text here"


def test_without_branches_nothing_follows() -> None:
    assert follow_branches(TokenTree((1, 2, 3, 4)), (), position=4, token_id=5) == ()


def test_of_siblings_with_one_id_the_first_counts() -> None:
    tree = TokenTree((1,), (BranchToken(0, 5), BranchToken(0, 5), BranchToken(2, 6)))
    assert follow_branches(tree, [6, 6, 7], position=1, token_id=5) == (6,)


@pytest.mark.parametrize("choices", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], []])
def test_a_choice_too_few_or_too_many_is_refused(choices: list[int]) -> None:
    with pytest.raises(ValueError, match=f"5 branch tokens need as many choices, got {len(choices)}"):
        follow_branches(TREE, choices, position=2, token_id=5)


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, list[BranchToken]]:
    """Draw a chain's length, and branches next to it whose siblings have different ids."""
    chain = draw(st.integers(0, 3))
    branches: list[BranchToken] = []
    for _ in range(draw(st.integers(0, 12))):
        branch = BranchToken(draw(st.integers(0, chain + len(branches))), draw(st.integers(0, 2)))
        if branch not in branches:
            branches.append(branch)
    return chain, branches


@given(tree=trees(), stands=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_the_walk_writes_the_cloud_only_text(tree: tuple[int, list[BranchToken]], stands: int, seed: int) -> None:
    """The oracle works on texts: while the text so far ends in a branch token, the cloud's next choice follows."""
    chain, branches = tree
    stands = min(stands, chain)

    def choice(text: tuple[int, ...]) -> int:
        return hash((seed, text)) % 4

    texts = [tuple(range(9, 10 + length)) for length in range(chain + 1)]  # 9 is the text before the chain
    for branch in branches:
        texts.append((*texts[branch.parent], branch.token_id))
    text = texts[stands]
    expected = [choice(text)]
    while expected[-1] != 3 and (*text, *expected) in texts[chain + 1 :]:
        expected.append(choice((*text, *expected)))
    further = follow_branches(
        TokenTree(texts[chain], tuple(branches)),
        [choice(text) for text in texts[chain + 1 :]],
        position=stands + 1,
        token_id=expected[0],
        eos_token_ids={3},
    )
    assert [expected[0], *further] == expected
