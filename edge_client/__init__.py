"""The device SDK of Chaperone.

async with EdgeClient.from_config("configs/edge.yaml") as client:
    async for event in client.stream("Write a haiku."):
        ...
"""

from common.errors import ChaperoneError
from common.session import Audited, Committed, Drafted, Event, Failed, Finished, Retracted
from common.stats import GenerationStats
from common.types import FinishReason, GenerationParams, Mode, Origin, PromptInput, SamplingParams, Signal
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig
from edge_client.generation import Generation, GenerationRequest
from edge_client.sync_client import SyncEdgeClient

__all__ = [
    "Audited",
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
