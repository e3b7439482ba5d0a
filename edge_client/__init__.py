"""The device SDK of Chaperone.

async with EdgeClient.from_config("configs/edge.yaml") as client:
    async for event in client.stream("Write a haiku."):
        ...
"""

from common.errors import ChaperoneError
from common.session import Committed, Drafted, Event, Failed, Finished, Retracted
from common.stats import GenerationStats
from common.types import FinishReason, GenerationParams, Mode, Origin, PromptInput, SamplingParams, Signal
from edge_client.client import EdgeClient, Generation, GenerationRequest, SyncEdgeClient
from edge_client.config import EdgeConfig

__all__ = [
    "ChaperoneError",
    "Committed",
    "Drafted",
    "EdgeClient",
    "EdgeConfig",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Generation",
    "GenerationParams",
    "GenerationRequest",
    "GenerationStats",
    "Mode",
    "Origin",
    "PromptInput",
    "Retracted",
    "SamplingParams",
    "Signal",
    "SyncEdgeClient",
]
