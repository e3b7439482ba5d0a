"""One generation as a state machine without I/O, both ends: frames and tokens in, events and frames out."""

from common.session.cloud import CloudSession, Judging
from common.session.device import DeviceSession
from common.session.events import (
    Audited,
    Committed,
    Drafted,
    Event,
    Failed,
    Finished,
    Retracted,
    SessionEvent,
    Unverified,
)
from common.session.transitions import TRANSITIONS, Happening, State, mermaid, step

__all__ = [
    "TRANSITIONS",
    "Audited",
    "CloudSession",
    "Committed",
    "DeviceSession",
    "Drafted",
    "Event",
    "Failed",
    "Finished",
    "Happening",
    "Judging",
    "Retracted",
    "SessionEvent",
    "State",
    "Unverified",
    "mermaid",
    "step",
]
