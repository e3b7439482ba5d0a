"""The device SDK of Chaperone.

async with EdgeClient.from_config("configs/edge.yaml") as client:
    async for event in client.stream("Write a haiku."):
        ...
"""

from common.errors import Cancelled, ChaperoneError, CloudLost, ConfigError, InvalidRequest
from common.gate import Promises, Totals
from common.planner import Decision
from common.session import Audited, Committed, Drafted, Event, Failed, Finished, Retracted
from common.stats import GenerationStats
from common.types import FinishReason, GenerationParams, Mode, OnDeviation, Origin, PromptInput, SamplingParams, Signal
from edge_client.client import EdgeClient
from edge_client.config import (
    CloudSettings,
    DeviceSettings,
    EdgeConfig,
    GateSettings,
    GenerationSettings,
    PlannerSettings,
)
from edge_client.generation import Generation, GenerationRequest, Prompt
from edge_client.sync_client import SyncEdgeClient

__all__ = [
    "Audited",
    "Cancelled",
    "ChaperoneError",
    "CloudLost",
    "CloudSettings",
    "Committed",
    "ConfigError",
    "Decision",
    "DeviceSettings",
    "Drafted",
    "EdgeClient",
    "EdgeConfig",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "GateSettings",
    "Generation",
    "GenerationParams",
    "GenerationRequest",
    "GenerationSettings",
    "GenerationStats",
    "InvalidRequest",
    "Mode",
    "OnDeviation",
    "Origin",
    "PlannerSettings",
    "Promises",
    "Prompt",
    "PromptInput",
    "Retracted",
    "SamplingParams",
    "Signal",
    "SyncEdgeClient",
    "Totals",
]
