"""The table of `make demo`, with results made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from chaperone_common.session import Audited
from chaperone_common.types import FinishReason, Mode, Origin
from edge_client import Generation, GenerationStats
from examples.demo_table import (
    WIDTH,
    Answer,
    Difference,
    Reason,
    answer_of,
    difference,
    explanation,
    prompt_json,
    table,
)

PROMPT_TOKENS = (7, 8, 9)


def answer(*token_ids: int, origin: Origin = Origin.VERIFIED, audits: tuple[Audited, ...] = (), **stats: Any) -> Answer:
    """Return an answer of these tokens, all of one origin."""
    generation = Generation(
        PROMPT_TOKENS, token_ids, "text", (origin,) * len(token_ids), FinishReason.STOP, GenerationStats(**stats)
    )
    return answer_of(generation, audits)


CLOUD = answer(1, 2, 3, 4, origin=Origin.TAKEOVER, ttft_ms=2410, ttft_committed_ms=2410, total_ms=59_260, round_trips=1)
SKIPPED = Origin.DRAFT


def test_equal_texts_do_not_differ() -> None:
    assert difference(answer(1, 2, 3, 4), CLOUD) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (answer(1, 2, 9, 9, origin=SKIPPED, audits=(Audited(3, 7, (5,)),)), Reason.DEVIATION),
        (answer(1, 2, 9, 9, origin=SKIPPED, audits=(Audited(3, 5), Audited(5, 7, (5, 6)))), Reason.DEVIATION),
        (answer(1, 2, 9, 9, origin=SKIPPED, audits=(Audited(3, 7, (6,)),)), Reason.ROUNDING),
        (answer(1, 2, 9, 9, origin=SKIPPED, audits=(Audited(3, 7),)), Reason.ROUNDING),
        (answer(1, 2, 9, 9, origin=Origin.OVERRIDE), Reason.ROUNDING),
        (answer(1, 2, 9, 9, origin=SKIPPED, audits=(Audited(3, 5),)), Reason.UNCHECKED),
        (answer(1, 2, 9, 9, origin=SKIPPED), Reason.UNCHECKED),
        (answer(1, 2, 9, 9, origin=Origin.UNVERIFIED), Reason.UNCHECKED),
    ],
)
def test_the_reason_is_known_from_the_first_token_that_differs(text: Answer, reason: Reason) -> None:
    assert difference(text, CLOUD) == Difference(2, reason)


@pytest.mark.parametrize("text", [answer(1, 2), answer(1, 2, 3, 4, 5), answer()])
def test_a_longer_or_shorter_text_differs(text: Answer) -> None:
    shared = min(4, len(text.generation.token_ids))
    assert difference(text, CLOUD) == Difference(shared, Reason.LENGTH)


def tables() -> dict[Mode, Answer]:
    return {
        Mode.EDGE: answer(1, 9, 9, 9, origin=SKIPPED, ttft_ms=680, ttft_committed_ms=680, total_ms=5_230),
        Mode.CLOUD: CLOUD,
        Mode.EXACT: answer(
            *(1, 2, 3, 4),
            ttft_ms=860,
            ttft_committed_ms=3320,
            total_ms=18_600,
            round_trips=2,
            hidden_round_trips=20,
            cloud_compute_ms=17_900,
        ),
        Mode.GATED: answer(
            *(1, 2, 9, 9),
            origin=SKIPPED,
            audits=(Audited(3, 7, (5, 6)),),
            ttft_ms=1050,
            ttft_committed_ms=1090,
            total_ms=24_000,
            hidden_round_trips=14,
            cloud_compute_ms=24_100,
        ),
    }


def test_the_table_has_a_row_for_each_mode() -> None:
    assert table(tables()) == [
        "mode      first word  last word  tokens  requests  cloud compute  same text as cloud",
        "edge          0.68 s     5.23 s       4         0         0.00 s  no, from token 2: unchecked",
        "cloud         2.41 s     59.3 s       4         1         0.00 s  it is the cloud's",
        "exact  (0.86) 3.32 s     18.6 s       4        22         17.9 s  yes",
        "gated         1.09 s     24.0 s       4        14         24.1 s  no, from token 3: 2 deviations",
    ]


def test_one_deviation_is_not_plural() -> None:
    one = answer(1, 9, 9, 9, origin=SKIPPED, audits=(Audited(3, 7, (4,)),))
    (*_, line) = table({Mode.CLOUD: CLOUD, Mode.GATED: one})
    assert line.endswith("  no, from token 2: 1 deviation")


def test_a_text_without_tokens_has_no_first_word() -> None:
    (*_, line) = table({Mode.CLOUD: answer(), Mode.EXACT: answer()})
    assert line.split()[:4] == ["exact", "-", "0.00", "s"]


@pytest.mark.parametrize("origin", Origin)
@pytest.mark.parametrize("found", [(), (4,), (5,), (6,), (4, 6)])
def test_another_text_is_never_shown_with_0_deviations(origin: Origin, found: tuple[int, ...]) -> None:
    """A count is shown only where an audit found the first token that differs, so it is at least 1."""
    for audited in range(5):
        text = answer(1, 2, 9, 9, origin=origin, audits=(Audited(3, 3 + audited, found),))
        (*_, line) = table({Mode.CLOUD: CLOUD, Mode.GATED: text})
        assert "no, from token 3: " in line
        assert ("deviation" in line) == (5 in found)
        assert " 0 deviation" not in line


def test_every_column_is_explained_and_each_reason_that_occurs() -> None:
    columns = ["first word", "last word", "tokens", "requests", "cloud compute", "same text"]
    equal = explanation([{Mode.CLOUD: CLOUD}])
    assert [line[:15].strip() for line in equal if line[0] != " "] == columns
    both = explanation([{Mode.CLOUD: CLOUD}, tables()])
    assert both[: len(equal)] == equal
    assert [line[:15].strip() for line in both[len(equal) :] if line[:15].strip()] == ["deviation", "unchecked"]


def test_all_lines_fit_on_a_terminal() -> None:
    assert WIDTH <= 100
    long = answer(*range(4000), origin=SKIPPED, audits=(Audited(3, 4000, tuple(range(1500, 1540))),), total_ms=999_900)
    reference = answer(*range(1497), *range(2503), origin=Origin.TAKEOVER)
    tokens_apart = [{Mode.CLOUD: reference, Mode.GATED: long}, tables()]
    for line in [*table(tokens_apart[0]), *table(tables()), *explanation(tokens_apart)]:
        assert len(line) <= WIDTH


def test_the_json_has_the_generations_and_the_cells() -> None:
    made = prompt_json("Hi", tables())
    assert made["prompt"] == "Hi"
    assert list(made["generations"]) == list(made["table"]) == ["edge", "cloud", "exact", "gated"]
    assert made["generations"]["exact"]["token_ids"] == [1, 2, 3, 4]
    assert made["table"]["exact"] == {
        "first_provisional_s": 0.86,
        "first_word_s": 3.32,
        "last_word_s": 18.6,
        "tokens": 4,
        "requests": 22,
        "cloud_compute_s": 17.9,
        "equals_cloud": True,
        "first_difference": None,
        "deviations": [],
    }
    assert made["table"]["gated"]["first_difference"] == {"index": 2, "reason": "deviation"}
    assert made["table"]["gated"]["deviations"] == [2, 3]
