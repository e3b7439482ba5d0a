"""The decisions of the planner for people to read: one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edge_client.planner import CatchUp, Decision, DraftForest, DraftToken, HandOver, Send, Wait

_SIGNIFICANT_DIGITS = 4
# The names of the actions are a documented part of the JSON, and independent of the classes' names.
_ACTIONS = {
    DraftToken: "Draft",
    CatchUp: "CatchUp",
    Send: "Send",
    HandOver: "HandOver",
    Wait: "Wait",
    DraftForest: "DraftForest",
}

Explain = Callable[[Decision], None]


def explainer(write: Callable[[Any], None], **labels: Any) -> Explain:
    """Return a function for the decisions of one generation: it writes each as an object of JSON.

    `labels` are fields of each object, such as the `id` of a line. Decisions hold lengths, times and probabilities,
    and never a token or a text.
    """
    return lambda decision: write(labels | decision_json(decision))


def decision_json(decision: Decision) -> dict[str, Any]:
    """Return a decision as an object of JSON: the action with its fields, the reason, and rounded figures."""
    action = {"action": _ACTIONS[type(decision.action)], **asdict(decision.action)}
    figures = {name: _rounded(value) for name, value in decision.figures.items()}
    return {**action, "reason": decision.reason, "figures": figures}


def _rounded(value: float) -> float:
    """Round to four significant digits; whole numbers stay."""
    if float(value).is_integer():
        return int(value)
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
