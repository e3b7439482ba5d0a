"""A draft token stands if and only if it is the cloud's own choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.session.verification import SpanOutcome, verify

EOS = 9
IDS = st.lists(st.integers(0, 3), max_size=12)


@pytest.mark.parametrize(
    ("tokens", "choices", "audited", "expected"),
    [
        ([], [5], 0, SpanOutcome(0, 5, ())),
        ([5], [5, 6], 0, SpanOutcome(1, 6, ())),
        ([5], [4, 6], 0, SpanOutcome(0, 4, ())),
        ([5, 6, 7], [5, 6, 7, 8], 0, SpanOutcome(3, 8, ())),
        ([5, 6, 7], [5, 2, 7, 8], 0, SpanOutcome(1, 2, ())),  # agreement after the override counts for nothing
        ([5, 6, 7], [1, 2, 3, 8], 3, SpanOutcome(3, 8, (0, 1, 2))),
        ([5, 6, 7], [1, 6, 3, 8], 2, SpanOutcome(2, 3, (0,))),
        ([5, 6, 7], [1, 6, 7, 8], 2, SpanOutcome(3, 8, (0,))),
        ([5, 6], [5, 6, 7], 99, SpanOutcome(2, 7, ())),  # more audited tokens than there are
    ],
)
def test_judges_by_example(tokens: list[int], choices: list[int], audited: int, expected: SpanOutcome) -> None:
    assert verify(tokens, choices, audited=audited) == expected


@pytest.mark.parametrize(
    ("tokens", "choices", "audited", "expected"),
    [
        ([5, EOS], [5, EOS, 1], 0, SpanOutcome(1, EOS, ())),  # both end: the end is the cloud's own token
        ([EOS, 5], [EOS, 5, 1], 0, SpanOutcome(0, EOS, ())),
        ([5, EOS], [5, 6, 1], 0, SpanOutcome(1, 6, ())),  # only the draft ends
        ([5, 6], [5, EOS, 1], 0, SpanOutcome(1, EOS, ())),  # only the cloud ends
        ([5, 6], [5, 6, EOS], 0, SpanOutcome(2, EOS, ())),  # the bonus ends
        ([5, EOS, 6], [5, EOS, 6, 7], 2, SpanOutcome(3, 7, ())),  # a committed end cannot be taken back
    ],
)
def test_end_of_text(tokens: list[int], choices: list[int], audited: int, expected: SpanOutcome) -> None:
    assert verify(tokens, choices, audited=audited, eos_token_ids={EOS}) == expected


def test_without_end_of_text_ids_no_token_ends() -> None:
    assert verify([0, 0], [0, 0, 0]) == SpanOutcome(2, 0, ())


@pytest.mark.parametrize(("tokens", "choices"), [([], []), ([1], [1]), ([1], [1, 2, 3]), ([], [1, 2])])
def test_a_choice_too_few_or_too_many_is_refused(tokens: list[int], choices: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{len(tokens)} tokens need {len(tokens) + 1} choices, got {len(choices)}"):
        verify(tokens, choices)


def test_a_draft_is_compared_with_the_cloud_not_with_itself() -> None:
    draft = [1, 2, 3, 1]
    for wrong in range(4):
        choices = [*draft, 7]
        choices[wrong] = 8
        assert verify(draft, choices).stands == wrong


def test_a_choice_judges_its_own_position_not_the_one_before() -> None:
    draft = [1, 2, 3]
    assert verify(draft, [2, 3, 4, 5]).stands == 0  # choices shifted by one
    assert verify(draft, [0, 1, 2, 3]).stands == 0


def test_padding_is_no_agreement() -> None:
    """Token 0 is an ordinary token: a row of zeros agrees with no other text, and a draft of zeros with no choice."""
    assert verify([1, 2, 3], [0, 0, 0, 0]) == SpanOutcome(0, 0, ())
    assert verify([1, 0, 0], [1, 2, 3, 4]) == SpanOutcome(1, 2, ())
    assert verify([1, 2], [0, 0, 0], audited=2) == SpanOutcome(2, 0, (0, 1))


@given(tokens=IDS, choices=IDS, bonus=st.integers(0, 3), audited=st.integers(0, 14))
def test_the_longest_agreeing_prefix_stands(tokens: list[int], choices: list[int], bonus: int, audited: int) -> None:
    size = min(len(tokens), len(choices))
    tokens, choices = tokens[:size], [*choices[:size], bonus]
    result = verify(tokens, choices, audited=audited)
    sure = min(audited, size)
    assert result.token_id == choices[result.stands]
    assert sure <= result.stands <= size
    assert tokens[sure : result.stands] == choices[sure : result.stands]
    assert result.stands == size or tokens[result.stands] != choices[result.stands]
    assert list(result.deviations) == [index for index in range(sure) if tokens[index] != choices[index]]
