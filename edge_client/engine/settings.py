"""The settings of one generation."""

from __future__ import annotations

from dataclasses import dataclass

from chaperone_common.ranges import MAX_COUNT
from chaperone_common.session import DeviceSession
from chaperone_common.types import OnDeviation
from edge_client.gate import NO_LIMIT, CloudShareLimit


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings of one generation; deadlines are in milliseconds."""

    open_deadline_ms: float
    verification_deadline_ms: float
    # Tokens of one Draft, branches included.
    max_span_tokens: int = 256
    # Ids below it are tokens; the cloud may send no other. The default allows all ids that a frame can hold.
    vocabulary_size: int = MAX_COUNT + 1
    # How long to try to reach a lost cloud. 0: do not try.
    reconnect_timeout_ms: float = 0.0
    continue_without_cloud: bool = False
    # Wait for the audit of the unread tail before the generation ends.
    closing_audit: bool = False
    # Share of the generations to audit, of those that never asked the cloud.
    audit_share: float = 1.0
    on_deviation: OnDeviation = OnDeviation.KEEP
    cloud_share: CloudShareLimit = NO_LIMIT
    # Draft nothing until both ends hold the prompt's KV.
    warm_start: bool = False
    # Whether promises cover the committed tokens of a resumed text; None: mode `edge` wrote them.
    committed_promises_hold: bool | None = True

    def answer_ms(self, session: DeviceSession) -> float:
        """Return the time that an answer to a Draft may take. The first ones wait for the prompt's prefill."""
        return self.verification_deadline_ms if session.prefilled else self.open_deadline_ms

    def closing_share(self, session: DeviceSession, drawn: float) -> float:
        """Return the share of generations like this one whose tail is audited; 0 if this one is not.

        Of those that never asked the cloud, `audit_share` are audited. `drawn` is a random number in [0, 1).
        """
        if session.tally.requests:
            return 1.0
        return self.audit_share if drawn < self.audit_share else 0.0

    def next_frame_ms(self, session: DeviceSession) -> float:
        """Return the time that the next frame may take. The answer to the Open waits for no prefill."""
        return self.answer_ms(session) if session.opened else self.verification_deadline_ms
