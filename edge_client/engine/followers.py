"""All that follows the events of a text: model, gate, risk model, clock and output."""

from __future__ import annotations

from collections.abc import Iterable

from chaperone_common.session import Committed, DeviceSession, SessionEvent
from edge_client.engine.measurement import Stopwatch
from edge_client.engine.speculation import Speculation
from edge_client.gate import GateUntilClosed
from edge_client.ports import OutputText, RiskModel


class Followers:
    """Keeps model, gate, clock and text in step with the session."""

    def __init__(
        self,
        session: DeviceSession,
        speculation: Speculation,
        gate: GateUntilClosed,
        risk_model: RiskModel | None,
        watch: Stopwatch,
        output: OutputText,
    ) -> None:
        self._session = session
        self._speculation = speculation
        self._gate = gate
        self._risk_model = risk_model
        self._watch = watch
        self._output = output

    def observe(self, events: Iterable[SessionEvent]) -> list[SessionEvent]:
        """Report events to all of them; return the events with their text.

        A completed stop string ends the text. Events after it are dropped.
        """
        shown: list[SessionEvent] = []
        for event in events:
            self._speculation.follow(event)
            self._report(event)
            self._watch.follow(event)
            with_text, stopped = self._output.follow(event)
            shown.append(with_text)
            if stopped and isinstance(event, Committed):
                for after in self._session.finish_at(event.position + 1):
                    self._report(after)
                    shown.append(after)
                break
        return shown

    def _report(self, event: SessionEvent) -> None:
        self._gate.follow(event)
        if self._risk_model is not None:
            self._risk_model.follow(event)
