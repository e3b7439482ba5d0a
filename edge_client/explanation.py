"""What the planner decides, for people to read along: one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from common.planner import Decision
from edge_client.batch import Line

_SIGNIFICANT_DIGITS = 4


class Explainer:
    """Writes each decision to standard error; of a batch, with the `id` of the line that it is about.

    It is told lengths, times and chances, and never a token or a text.
    """

    def __init__(self) -> None:
        self._line: dict[str, Any] = {}

    def __call__(self, decision: Decision) -> None:
        sys.stderr.write(json.dumps(self._line | decision_json(decision), ensure_ascii=False) + "\n")

    def following(self, lines: Iterable[Line]) -> Iterator[Line]:
        """The same lines; what is decided until the next one is asked for is about the last."""
        for line in lines:
            self._line = {"id": line.id}
            yield line


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
