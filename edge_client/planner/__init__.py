"""Which action next: draft on, send, wait, hand over, or take back."""

from edge_client.planner.actions import Action, CatchUp, Decision, Draft, HandOver, Send, Sprout, Wait
from edge_client.planner.adaptive import AdaptivePlanner
from edge_client.planner.costs import Costs, Estimates
from edge_client.planner.fixed import FixedPlanner
from edge_client.planner.pipeline import Pipeline
from edge_client.planner.situation import Planner, Situation

__all__ = [
    "Action",
    "AdaptivePlanner",
    "CatchUp",
    "Costs",
    "Decision",
    "Draft",
    "Estimates",
    "FixedPlanner",
    "HandOver",
    "Pipeline",
    "Planner",
    "Send",
    "Situation",
    "Sprout",
    "Wait",
]
