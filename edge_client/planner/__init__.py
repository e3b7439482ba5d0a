"""The planner: it chooses the next action, such as draft, send, wait or hand over."""

from chaperone_common.planning.costs import Costs
from edge_client.planner.actions import (
    Action,
    BranchPrefix,
    CatchUp,
    Decision,
    DraftForest,
    DraftToken,
    HandOver,
    Send,
    Wait,
)
from edge_client.planner.adaptive import AdaptivePlanner
from edge_client.planner.costs import Estimates
from edge_client.planner.fixed import FixedPlanner
from edge_client.planner.pipeline import Pipeline
from edge_client.planner.situation import Planner, Situation

__all__ = [
    "Action",
    "AdaptivePlanner",
    "BranchPrefix",
    "CatchUp",
    "Costs",
    "Decision",
    "DraftForest",
    "DraftToken",
    "Estimates",
    "FixedPlanner",
    "HandOver",
    "Pipeline",
    "Planner",
    "Send",
    "Situation",
    "Wait",
]
