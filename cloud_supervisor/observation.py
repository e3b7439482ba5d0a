"""The happenings in a service, as values, and the one port that metrics, traces and logs implement.

No observation holds a prompt, a token id or a text. Times are in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from chaperone_common.errors import trace_of

_LOG = logging.getLogger(__name__)


class Outcome(StrEnum):
    """The end of a stream."""

    CLOSED = "closed"  # the device closed it, and has its last answer
    CANCELLED = "cancelled"  # the device left, or its connection broke
    MOVED = "moved"  # the device has another, or opens one
    REFUSED = "refused"  # a frame, a limit or a quota
    FAILED = "failed"  # a fault of the cloud


@dataclass(frozen=True, slots=True)
class Refused:
    """A call or a stream was refused; `reason` is a status, a quota or a limit, in lower case."""

    tenant: str
    peer: str
    reason: str
    message: str
    token: str = ""  # the id of a token that was revoked or has expired, never its secret


@dataclass(frozen=True, slots=True)
class PrefixMissed:
    """An Open referred to a text that is not kept; the device then sends its whole prompt."""

    tenant: str


@dataclass(frozen=True, slots=True)
class StreamBegan:
    """An Open was admitted."""

    stream: int  # a number of this process
    tenant: str
    prompt_tokens: int
    traceparent: str  # of the device, as in W3C Trace Context; "": none


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A stream that began has ended."""

    stream: int
    tenant: str
    outcome: Outcome
    duration_s: float


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt of a stream is in the cache."""

    stream: int
    tenant: str
    tokens: int
    queue_s: float
    compute_s: float
    encoded: int = 0  # tokens of the prompt whose rows were sent to the device


@dataclass(frozen=True, slots=True)
class Answered:
    """A Draft or a Close has its answer, or the cloud wrote one token of a takeover."""

    stream: int
    tenant: str
    start: int  # the position of the first token that was judged or written
    verified: int  # tokens of the device that were compared with a choice before they were final
    accepted: int  # of them, tokens that stand
    own: int  # tokens of the cloud's own in the answer: an override, a bonus, and those after a branch
    takeover: int  # tokens that the cloud wrote by itself
    audited: int  # final tokens that were compared
    deviations: int  # of them, tokens that differ
    queue_s: float
    compute_s: float
    duration_s: float  # from the arrival of the frame to its answer
    first: bool  # the first answer of the stream
    since_open_s: float

    @property
    def needed_forward(self) -> bool:
        """The model was asked; else the cloud's text held the answer already, or there was nothing left to audit."""
        return bool(self.verified or self.own or self.takeover or self.audited)


@dataclass(frozen=True, slots=True)
class Stepped:
    """The model has run one forward."""

    sessions: int
    tokens: int  # that were fed
    held_tokens: int  # that the caches held already
    duration_s: float


@dataclass(frozen=True, slots=True)
class ModelSent:
    """A request for a file of the device's model has ended, whole or not."""

    tenant: str
    sent_bytes: int


Observation = Refused | PrefixMissed | StreamBegan | StreamEnded | Prefilled | Answered | Stepped | ModelSent


class Observer(Protocol):
    """Notices what happens. It must not block, and may be called from the event loop only."""

    def notice(self, observation: Observation) -> None:
        """Take an observation."""


class Observers:
    """Several observers as one. An observer that fails disturbs neither the service nor the others."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def notice(self, observation: Observation) -> None:
        for observer in self._observers:
            try:
                observer.notice(observation)
            except Exception as error:
                _LOG.error("%s failed on %s: %s", type(observer).__name__, type(observation).__name__, trace_of(error))
