"""One generation as a state machine without I/O, for both ends: frames and tokens in, events and frames out."""

from chaperone_common.session.cloud import CloudSession, VerificationRequest
from chaperone_common.session.device import DeviceSession
from chaperone_common.session.events import (
    Audited,
    CloudShareReached,
    Committed,
    Drafted,
    Failed,
    Finished,
    Retracted,
    SessionEvent,
    Unverified,
)
from chaperone_common.session.text_token import TextToken
from chaperone_common.session.transitions import TRANSITIONS, State, StreamEvent, mermaid, step

__all__ = [
    "TRANSITIONS",
    "Audited",
    "CloudSession",
    "CloudShareReached",
    "Committed",
    "DeviceSession",
    "Drafted",
    "Failed",
    "Finished",
    "Retracted",
    "SessionEvent",
    "State",
    "StreamEvent",
    "TextToken",
    "Unverified",
    "VerificationRequest",
    "mermaid",
    "step",
]
