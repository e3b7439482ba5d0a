"""Which action next: draft on, send, wait, hand over, or take back."""

from common.planner.actions import Action, CatchUp, Decision, Draft, HandOver, Send, Sprout, Wait
from common.planner.adaptive import AdaptivePlanner
from common.planner.costs import Costs, Estimates
from common.planner.fixed import FixedPlanner
from common.planner.pipeline import Pipeline
from common.planner.situation import Planner, Situation

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
