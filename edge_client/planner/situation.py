"""The planner protocol, and the situation that a planner decides on."""

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
    """The state of one generation at one moment."""

    session: DeviceSession
    tree: DraftTree
    pipeline: Pipeline
    now_ms: float
    # Tokens of the text that the device's model was fed.
    fed_length: int
    # The cloud may write tokens by itself. Under `max_cloud_share` it only answers questions.
    takeovers: bool = True

    @property
    def ending(self) -> float:
        """The chance that the cloud ends the text in place of the device's last token."""
        token = self.session.token(len(self.session.text) - 1)
        if token is None or token.proposal is None or token.proposal.runner_up not in self.session.eos_token_ids:
            return 0.0
        estimates = self.pipeline.estimates
        return estimates.risks.corrected(token.proposal.signal.risk) * estimates.hit


class Planner(Protocol):
    """Chooses actions. It is pure: the same situation gives the same decision."""

    @property
    def mode(self) -> Mode:
        """The mode whose promise the planner keeps."""

    def decide(self, situation: Situation) -> Decision:
        """Return the next action, with its reason."""

    def alone(self) -> Self:
        """Return the planner to use once the cloud is lost for good."""
