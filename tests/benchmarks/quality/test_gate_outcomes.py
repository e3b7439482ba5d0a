"""The outcome of each of a gate's tokens is recorded once, also in retracted texts."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.quality.gate_outcomes import OutcomeColumns, RecordingGate, TokenOutcome
from chaperone_common.session import Audited, Committed, Drafted, Retracted
from chaperone_common.types import Origin, Signal
from edge_client.gate import Threshold

SURE = Signal(entropy_nats=0.1, top1_probability=0.9, margin=0.8, coupled_margin=4.0, risk=0.125)
UNSURE = replace(SURE, coupled_margin=0.5, risk=0.75)


def drafted(gate: RecordingGate, position: int, token_id: int, signal: Signal) -> None:
    gate.follow(Drafted(position, token_id, signal, gate.fires(signal)))


def test_each_token_has_its_risk_and_its_outcome() -> None:
    gate = RecordingGate(Threshold(0.5))
    drafted(gate, 10, 1, SURE)
    gate.follow(Committed(10, 1, Origin.DRAFT))
    drafted(gate, 11, 2, UNSURE)
    drafted(gate, 12, 3, SURE)  # after a token that is overridden
    gate.follow(Retracted(11))
    gate.follow(Committed(11, 20, Origin.OVERRIDE))
    gate.follow(Committed(12, 21, Origin.BONUS))
    drafted(gate, 13, 4, UNSURE)
    gate.follow(Committed(13, 4, Origin.VERIFIED))
    gate.follow(Audited(10, 11, (10,)))
    outcomes = gate.outcomes([1, 20, 21, 4], prompt_length=10)
    assert outcomes == [
        TokenOutcome(0.125, 4.0, fired=False, overridden=True),
        TokenOutcome(0.75, 0.5, fired=True, overridden=True),
        None,
        TokenOutcome(0.75, 0.5, fired=True, overridden=False),
    ]


def test_a_file_keeps_outcomes() -> None:
    outcomes = [TokenOutcome(0.125, 4.0, True, False), None, TokenOutcome(1 / 3, 2.0, False, True)]
    columns = OutcomeColumns.of(outcomes)
    assert (columns.fired, columns.overridden) == ("1-0", "0-1")
    assert columns.known() == [outcomes[0], TokenOutcome(0.3333, 2.0, False, True)]
