"""The decisions of the planner for people to read: one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edge_client.planner import Decision

_SIGNIFICANT_DIGITS = 4


Explain = Callable[[Decision], None]


def explainer(write: Callable[[Any], None], **labels: Any) -> Explain:
    """Return an `explain` argument for one generation: it writes each decision as an object of JSON.

    `labels` are fields of each object, such as the `id` of a line. Decisions hold lengths, times and probabilities,
    and never a token or a text.
    """
    return lambda decision: write(labels | decision_json(decision))


def decision_json(decision: Decision) -> dict[str, Any]:
    """Return a decision as an object of JSON: the action with its fields, the reason, and rounded figures."""
    action = {"action": type(decision.action).__name__, **asdict(decision.action)}
    figures = {name: _rounded(value) for name, value in decision.figures.items()}
    return {**action, "reason": decision.reason, "figures": figures}


def _rounded(value: float) -> float:
    """Round to four significant digits; whole numbers stay."""
    if float(value).is_integer():
        return int(value)
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
