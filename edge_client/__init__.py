"""The device SDK of Chaperone: a small model drafts on the device, a large one in the cloud corrects it.

    async with EdgeClient.from_config("edge.yaml") as client:
        async for event in client.stream("Write a haiku."):
            print(event.text, end="")

`SyncEdgeClient` has the same methods without `async`. docs/using.md is the guide.
"""

from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudLost,
    CloudShareExceeded,
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
    PermissionDenied,
    PromptTooLong,
    ProtocolViolation,
    QuotaExceeded,
    Superseded,
    TokenizerMismatch,
    Unauthenticated,
    VersionMismatch,
)
from chaperone_common.frames import Capabilities
from chaperone_common.logprobs import ChoiceLogprobs, Logprob, LogprobSource, TokenLogprobs
from chaperone_common.partial import PartialBeams, PartialGeneration
from chaperone_common.session import (
    Audited,
    CloudShareReached,
    Committed,
    Drafted,
    Failed,
    Finished,
    Retracted,
    Unverified,
)
from chaperone_common.stats import GenerationStats
from chaperone_common.types import (
    BeamParams,
    FinishReason,
    GenerationParams,
    Mode,
    OnDeviation,
    Origin,
    Promises,
    PromptInput,
    Proposal,
    SamplingParams,
    Signal,
)
from edge_client.artefacts.model import pull_model
from edge_client.artefacts.pull import PulledModel, PullProgress
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
from edge_client.conversation import Conversation, Message, OnOverflow, Turn
from edge_client.events import Beams, BeamText, Event, Planned
from edge_client.gate import Gate, Totals
from edge_client.generation import Generation, GenerationRequest, Prompt, Streamer
from edge_client.journal import JournalState
from edge_client.parameters import RequestParameters
from edge_client.planner import Decision, Planner
from edge_client.ports import Cloud, Drafter, DraftModel
from edge_client.sync_client import SyncEdgeClient
from edge_client.sync_conversation import SyncConversation

__all__ = [
    "Audited",
    "BeamParams",
    "BeamText",
    "Beams",
    "Cancellation",
    "Cancelled",
    "Capabilities",
    "ChaperoneError",
    "ChoiceLogprobs",
    "Cloud",
    "CloudLost",
    "CloudSettings",
    "CloudShareExceeded",
    "CloudShareReached",
    "CloudTimeout",
    "CloudUnavailable",
    "Committed",
    "ConfigError",
    "Conversation",
    "Decision",
    "DeviceSettings",
    "DraftModel",
    "Drafted",
    "Drafter",
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
    "JournalState",
    "Logprob",
    "LogprobSource",
    "Message",
    "Mode",
    "ModelCorrupt",
    "ModelError",
    "ModelMismatch",
    "ModelMissing",
    "OnDeviation",
    "OnOverflow",
    "Origin",
    "Overloaded",
    "PartialBeams",
    "PartialGeneration",
    "PeerMismatch",
    "PermissionDenied",
    "Planned",
    "Planner",
    "PlannerSettings",
    "Promises",
    "Prompt",
    "PromptInput",
    "PromptTooLong",
    "Proposal",
    "ProtocolViolation",
    "PullProgress",
    "PulledModel",
    "QuotaExceeded",
    "RequestParameters",
    "Retracted",
    "SamplingParams",
    "Signal",
    "Streamer",
    "Superseded",
    "SyncConversation",
    "SyncEdgeClient",
    "TokenLogprobs",
    "TokenizerMismatch",
    "Totals",
    "Turn",
    "Unauthenticated",
    "Unverified",
    "VersionMismatch",
    "pull_model",
]
