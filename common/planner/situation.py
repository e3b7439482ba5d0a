"""What a planner decides from, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from common.draft_tree import DraftTree
from common.planner.actions import Decision
from common.planner.pipeline import Pipeline
from common.session import DeviceSession
from common.types import Mode


@dataclass(frozen=True, slots=True)
class Situation:
    """One generation at one moment."""

    session: DeviceSession
    tree: DraftTree
    pipeline: Pipeline
    now_ms: float
    read: int  # tokens of the text that the device's model has read


class Planner(Protocol):
    """Decides purely: the same situation gives the same decision."""

    @property
    def mode(self) -> Mode:
        """What is promised about the text."""

    def decide(self, situation: Situation) -> Decision:
        """The next action."""

    def alone(self) -> Self:
        """The planner of a generation that has lost its cloud for good."""
