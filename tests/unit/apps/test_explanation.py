"""Decisions as lines of JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge_client.apps.explanation import Explainer, decision_json
from edge_client.planner import Action, CatchUp, Decision, Draft, HandOver, Send, Sprout, Wait

ACTIONS: list[tuple[Action, dict[str, object]]] = [
    (Draft(), {"action": "Draft", "text": True, "branches": ()}),
    (Draft(False, (12,)), {"action": "Draft", "text": False, "branches": (12,)}),
    (CatchUp(), {"action": "CatchUp"}),
    (Send(), {"action": "Send", "tokens": None, "continuation_tokens": 0, "branches": ()}),
    (
        Send(3, 8, (Sprout(12, 2),)),
        {"action": "Send", "tokens": 3, "continuation_tokens": 8, "branches": ((12, 2),)},
    ),
    (HandOver(40), {"action": "HandOver", "tokens": 40}),
    (Wait(), {"action": "Wait"}),
]


@pytest.mark.parametrize(("action", "fields"), ACTIONS)
def test_an_action_is_told_with_its_fields(action: Action, fields: dict[str, object]) -> None:
    assert decision_json(Decision(action, "because")) == {**fields, "reason": "because", "figures": {}}


def test_figures_are_rounded_to_what_can_be_read() -> None:
    figures = {"position": 123456, "at_ms": 1234.5678, "value": -0.000123456, "best": 3.0, "nil": 0.0}
    assert decision_json(Decision(Wait(), "", figures))["figures"] == {
        "position": 123456,
        "at_ms": 1235.0,
        "value": -0.0001235,
        "best": 3,
        "nil": 0,
    }


def test_lines_that_run_at_once_carry_their_own_id() -> None:
    told: list[Any] = []
    explain = Explainer(told.append)

    async def line(line_id: object) -> None:
        explain.begin(line_id)
        for step in range(3):
            await asyncio.sleep(0)  # the others' turn
            explain(Decision(Wait(), f"{line_id} {step}"))

    async def all_lines() -> None:
        await asyncio.gather(line("a"), line({"any": "caf\u00e9"}), line(3))

    asyncio.run(all_lines())
    assert len(told) == 9
    assert all(row["reason"].startswith(f"{row['id']} ") for row in told)


def test_a_lone_generation_has_no_id() -> None:
    told: list[Any] = []
    Explainer(told.append)(Decision(Send(2), "because", {"position": 7}))
    assert told == [
        {
            "action": "Send",
            "tokens": 2,
            "continuation_tokens": 0,
            "branches": (),
            "reason": "because",
            "figures": {"position": 7},
        }
    ]
