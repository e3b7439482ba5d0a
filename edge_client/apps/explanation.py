"""What the planner decides, for people to read along: one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any

from edge_client.planner import Decision

_SIGNIFICANT_DIGITS = 4


class Explainer:
    """Says each decision; of a batch, with the `id` of the line that it is about.

    It is told lengths, times and chances, and never a token or a text.
    """

    def __init__(self, say: Callable[[Any], None]) -> None:
        """`say` takes an object of JSON."""
        self._say = say
        self._line: ContextVar[dict[str, Any]] = ContextVar("line")

    def __call__(self, decision: Decision) -> None:
        self._say(self._line.get({}) | decision_json(decision))

    def begin(self, line_id: Any) -> None:
        """Whatever is decided from now on in this task is about this line."""
        self._line.set({"id": line_id})


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as an object of JSON: the action with its fields, the reason, and rounded figures."""
    action = {"action": type(decision.action).__name__, **asdict(decision.action)}
    figures = {name: _rounded(value) for name, value in decision.figures.items()}
    return {**action, "reason": decision.reason, "figures": figures}


def _rounded(value: float) -> float:
    """To four significant digits, whole numbers as they are."""
    if float(value).is_integer():
        return int(value)
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
