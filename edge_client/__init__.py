"""The device SDK of Chaperone.

async with EdgeClient.from_config("edge.yaml") as client:
    async for event in client.stream("Write a haiku."):
        ...
"""

from common.errors import (
    Cancelled,
    ChaperoneError,
    CloudLost,
    CloudTimeout,
    CloudUnavailable,
    ConfigError,
    GateMismatch,
    GenerationTimeout,
    InternalError,
    InvalidRequest,
    ModelCorrupt,
    ModelError,
    ModelMismatch,
    ModelMissing,
    Overloaded,
    PeerMismatch,
    PromptTooLong,
    ProtocolViolation,
    Superseded,
    TokenizerMismatch,
    VersionMismatch,
)
from common.gate import Gate, Promises, Totals
from common.messages import Capabilities
from common.partial import PartialGeneration
from common.planner import Decision, Planner
from common.session import Audited, Committed, Drafted, Event, Failed, Finished, Retracted, Unverified
from common.stats import GenerationStats
from common.types import (
    FinishReason,
    GenerationParams,
    Mode,
    OnDeviation,
    Origin,
    PromptInput,
    Proposal,
    SamplingParams,
    Signal,
)
from edge_client.cancellation import Cancellation
from edge_client.client import EdgeClient
from edge_client.config import (
    CloudSettings,
    DeviceSettings,
    EdgeConfig,
    GateSettings,
    GenerationSettings,
    PlannerSettings,
)
from edge_client.generation import Generation, GenerationRequest, Prompt, RequestParameters
from edge_client.ports import Cloud
from edge_client.sync_client import SyncEdgeClient

__all__ = [
    "Audited",
    "Cancellation",
    "Cancelled",
    "Capabilities",
    "ChaperoneError",
    "Cloud",
    "CloudLost",
    "CloudSettings",
    "CloudTimeout",
    "CloudUnavailable",
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
    "Gate",
    "GateMismatch",
    "GateSettings",
    "Generation",
    "GenerationParams",
    "GenerationRequest",
    "GenerationSettings",
    "GenerationStats",
    "GenerationTimeout",
    "InternalError",
    "InvalidRequest",
    "Mode",
    "ModelCorrupt",
    "ModelError",
    "ModelMismatch",
    "ModelMissing",
    "OnDeviation",
    "Origin",
    "Overloaded",
    "PartialGeneration",
    "PeerMismatch",
    "Planner",
    "PlannerSettings",
    "Promises",
    "Prompt",
    "PromptInput",
    "PromptTooLong",
    "Proposal",
    "ProtocolViolation",
    "RequestParameters",
    "Retracted",
    "SamplingParams",
    "Signal",
    "Superseded",
    "SyncEdgeClient",
    "TokenizerMismatch",
    "Totals",
    "Unverified",
    "VersionMismatch",
]
