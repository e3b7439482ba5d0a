"""The events of a generation: those of its session, and on request the decisions of its planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chaperone_common.session import CloudShareReached, Failed, Finished, SessionEvent, Unverified
from edge_client.planner.actions import Decision


@dataclass(frozen=True, slots=True)
class Planned:
    """A decision of the planner, which is about to be carried out. Only `stream(..., explain=True)` yields it.

    The figures of the decision have its `position`, the length of the text with its prompt and provisional tokens, and
    `at_ms`, the time since the generation began. They hold no token and no text.
    """

    text: ClassVar[str] = ""
    generation_id: str  # `stats.generation_id` of the generation that it belongs to
    decision: Decision


Event = SessionEvent | Unverified | CloudShareReached | Planned | Finished | Failed
