"""Decisions as lines of JSON."""

from __future__ import annotations

from typing import Any

import pytest

from edge_client.apps.batch.explanation import decision_json, explainer
from edge_client.planner import Action, BranchPrefix, CatchUp, Decision, DraftToken, HandOver, Send, Wait

ACTIONS: list[tuple[Action, dict[str, object]]] = [
    (DraftToken(), {"action": "Draft", "text": True, "branches": ()}),
    (DraftToken(False, (12,)), {"action": "Draft", "text": False, "branches": (12,)}),
    (CatchUp(), {"action": "CatchUp"}),
    (Send(), {"action": "Send", "tokens": None, "continuation_tokens": 0, "branches": ()}),
    (
        Send(3, 8, (BranchPrefix(12, 2),)),
        {"action": "Send", "tokens": 3, "continuation_tokens": 8, "branches": ((12, 2),)},
    ),
    (HandOver(40), {"action": "HandOver", "tokens": 40}),
    (Wait(), {"action": "Wait"}),
]


@pytest.mark.parametrize(("action", "fields"), ACTIONS)
def test_an_action_is_written_with_its_fields(action: Action, fields: dict[str, object]) -> None:
    assert decision_json(Decision(action, "because")) == {**fields, "reason": "because", "figures": {}}


def test_figures_are_rounded_to_four_digits() -> None:
    figures = {"position": 123456, "at_ms": 1234.5678, "value": -0.000123456, "best": 3.0, "nil": 0.0}
    assert decision_json(Decision(Wait(), "", figures))["figures"] == {
        "position": 123456,
        "at_ms": 1235.0,
        "value": -0.0001235,
        "best": 3,
        "nil": 0,
    }


def test_labels_come_first_in_each_object() -> None:
    rows: list[Any] = []
    first, second = explainer(rows.append, id="a"), explainer(rows.append, id={"any": "caf\u00e9"})
    for explain in (first, second, first):
        explain(Decision(Wait(), "because"))
    assert [row["id"] for row in rows] == ["a", {"any": "caf\u00e9"}, "a"]
    assert all(list(row) == ["id", "action", "reason", "figures"] for row in rows)


def test_a_lone_generation_has_no_id() -> None:
    rows: list[Any] = []
    explainer(rows.append)(Decision(Send(2), "because", {"position": 7}))
    assert rows == [
        {
            "action": "Send",
            "tokens": 2,
            "continuation_tokens": 0,
            "branches": (),
            "reason": "because",
            "figures": {"position": 7},
        }
    ]
