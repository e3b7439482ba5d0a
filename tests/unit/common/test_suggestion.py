"""Values and names in messages: readable at any length."""

from __future__ import annotations

import pytest

from chaperone_common.suggestion import MOST_SHOWN, cut, did_you_mean, nearest, shown, summary


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("it has no name")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("fast", "'fast'"),
        (0.5, "0.5"),
        ("x" * 500, f"'{'x' * 76}..."),
        ([{"type": "function", "function": {"name": "weather", "description": "d" * 4096}}], None),
        ({"x" * 999: 1}, None),
        (10**5000, "a value of type int"),
        (Silent(), "a value of type Silent"),
    ],
    ids=["a word", "a number", "a text", "a list", "a key", "more digits than Python prints", "no repr"],
)
def test_a_value_is_shown_at_a_readable_length(value: object, text: str | None) -> None:
    found = shown(value)
    assert len(found) <= MOST_SHOWN
    assert found == text if text is not None else found.endswith("...")


def test_a_name_is_cut_without_quotes() -> None:
    assert cut("n" * 80) == "n" * 80
    assert cut("n" * 81) == f"{'n' * 77}..."


def test_a_text_is_summed_up_by_its_beginning_and_its_length() -> None:
    assert summary("short") == "'short' (5 characters)"
    assert summary("y" * 1234, 300) == f"'{'y' * 46}... (1234 characters, 300 tokens)"


def test_no_near_name_is_sought_for_a_name_that_nobody_has_mistyped() -> None:
    assert nearest("temprature", ["temperature"]) == " (did you mean 'temperature'?)"
    assert nearest("temperature" * 10, ["temperature"]) == ""
    assert did_you_mean("temperature" * 10, ["temperature", "top_p"]) == " (known: temperature, top_p)"
