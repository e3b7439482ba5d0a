"""What a planner decides from, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from chaperone_common.session import DeviceSession
from chaperone_common.types import Mode
from edge_client.planner.actions import Decision
from edge_client.planner.draft_tree import DraftTree
from edge_client.planner.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Situation:
    """One generation at one moment."""

    session: DeviceSession
    tree: DraftTree
    pipeline: Pipeline
    now_ms: float
    # Tokens of the text that the device's model was fed.
    fed_length: int


class Planner(Protocol):
    """Decides purely: the same situation gives the same decision."""

    @property
    def mode(self) -> Mode:
        """What is promised about the text."""

    def decide(self, situation: Situation) -> Decision:
        """The next action."""

    def alone(self) -> Self:
        """The planner of a generation that has lost its cloud for good."""
