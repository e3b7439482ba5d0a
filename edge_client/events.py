"""The events of a generation: those of its session, those of beams, and on request the decisions of its planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from chaperone_common.session import CloudShareReached, Failed, Finished, SessionEvent, Unverified
from chaperone_common.types import FinishReason, Origin
from edge_client.planner.actions import Decision


@dataclass(frozen=True, slots=True)
class Planned:
    """A decision of the planner, which is about to be carried out. Only `stream(..., explain=True)` yields it.

    The figures of the decision have its `position`, the length of the text with its prompt and provisional tokens, and
    `at_ms`, the time since the generation began. They hold no token and no text.
    """

    text: ClassVar[str] = ""
    generation_id: str  # `stats.generation_id` of the generation that it belongs to
    decision: Decision


@dataclass(frozen=True, slots=True)
class BeamText:
    """One of the texts of a generation with beams."""

    token_ids: tuple[int, ...]  # new tokens, after the prompt
    text: str  # whole characters; it ends before a stop string
    score: float  # the large model's log-probability over the length to the power of `length_penalty`
    finish_reason: FinishReason | None  # None while it grows
    logprob: float  # sum of the large model's own log-probabilities, in nats
    log_p: float | None = None  # of a text that grows: the same after temperature and truncation, its weight
    origins: tuple[Origin, ...] = ()  # of each token

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of an entry of `sequences`."""
        reason = None if self.finish_reason is None else str(self.finish_reason)
        return {"token_ids": list(self.token_ids), "text": self.text, "score": self.score, "finish_reason": reason}


@dataclass(frozen=True, slots=True)
class Beams:
    """The texts of a generation with beams after a round. Tokens that all of them share are final: see `Committed`."""

    text: ClassVar[str] = ""
    running: tuple[BeamText, ...]  # in the order of the cloud; the same text may be there twice
    finished: tuple[BeamText, ...]  # the best whole texts so far, the best first


Event = SessionEvent | Beams | Unverified | CloudShareReached | Planned | Finished | Failed
