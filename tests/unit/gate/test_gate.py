"""Gates decide from a signal and from the outcomes of earlier tokens, and every mode has one."""

from __future__ import annotations

import gc
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.session import Audited, Committed, Drafted, Retracted, SessionEvent
from chaperone_common.types import Mode, Origin, Promises, Proposal, Signal
from edge_client.config import GateSettings
from edge_client.gate import (
    Always,
    Budgeted,
    Control,
    Entry,
    Gate,
    GateUntilClosed,
    HeldOutRisks,
    Ledger,
    Never,
    Threshold,
    Totals,
)
from edge_client.gate.gating import Gates
from tests.session.test_both_ends import pairs
from tests.support.session.pair import PROMPT, Pair

SIGNALS = st.builds(
    Signal,
    entropy_nats=st.floats(0, 12),
    top1_probability=st.floats(0, 1),
    margin=st.floats(0, 1),
    coupled_margin=st.floats(0, 30),
    risk=st.floats(0, 1),
)


def signal(risk: float) -> Signal:
    return Signal(1.0, 0.5, 0.1, 1.0, risk)


def committed(
    position: int, token_id: int, origin: Origin, risk: float, *, drafted: int | None = None, fired: bool = False
) -> Committed:
    """Return a final token at a drafted position; the draft was the same token unless `drafted` is given."""
    proposal = Proposal(token_id if drafted is None else drafted, signal(risk), 99)
    return Committed(position, token_id, origin, proposal=proposal, fired=fired)


@given(signal=SIGNALS)
def test_always_and_never(signal: Signal) -> None:
    assert Always().fires(signal)
    assert not Never().fires(signal)


@given(signal=SIGNALS, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_lower_threshold_fires_wherever_a_higher_one_does(signal: Signal, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert Threshold(low).fires(signal) or not Threshold(high).fires(signal)


def test_a_threshold_fires_at_its_value() -> None:
    assert [Threshold(0.5).fires(signal(risk)) for risk in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]
    assert Threshold(0.0).fires(signal(0.0))


@pytest.mark.parametrize(
    ("policy", "risks_that_fire"),
    [("threshold", [0.9]), ("always", [0.0, 0.1, 0.9]), ("never", []), ("budgeted", [0.0, 0.1, 0.9])],
)
def test_the_gate_of_a_policy(policy: str, risks_that_fire: list[float]) -> None:
    """The budgeted gate has no data yet, and so fires at every token."""
    gate = Gates(GateSettings.model_validate({"policy": policy, "risk": 0.3})).gate(Mode.GATED, Promises())
    assert [risk for risk in (0.0, 0.1, 0.9) if gate.fires(signal(risk))] == risks_that_fire


def test_every_mode_has_a_gate() -> None:
    gates = Gates(GateSettings())
    assert {mode: type(gates.gate(mode, Promises())) for mode in Mode} == {
        Mode.EXACT: Always,
        Mode.GATED: Budgeted,
        Mode.EDGE: Never,
        Mode.CLOUD: Never,
        Mode.CONDITIONED: Never,
    }


def test_generations_of_one_promise_share_its_control() -> None:
    gates = Gates(GateSettings())
    assert gates.control(Promises()) is gates.control(Promises(0.95, 0.02))
    assert gates.control(Promises(0.9)) is not gates.control(Promises())


# The ledger


def test_an_unverified_token_and_its_audit_count_for_no_promise() -> None:
    ledger = Ledger()
    assert ledger.follow(committed(3, 1, Origin.UNVERIFIED, 0.5)) == Entry(unasked=0.5)
    assert ledger.follow(committed(4, 2, Origin.DRAFT, 0.25)) == Entry(0.25, skipped=True)
    assert ledger.most_deviations == 1
    assert ledger.follow(Audited(3, 5, (3, 4))) == Entry(audited=1, deviations=1, expected=0.25)
    control = Control(Promises())
    gate = Budgeted(control)
    for event in (committed(3, 1, Origin.UNVERIFIED, 0.5), Audited(3, 4, (3,))):
        gate.follow(event)
    assert control.totals == Totals()


def test_a_ledger_distinguishes_all_ends_of_a_token() -> None:
    """Tokens are skipped, fired and confirmed, fired and overridden, or written by the cloud, and then read."""
    ledger = Ledger()
    doubt = signal(0.25)
    events: list[SessionEvent] = [
        *(Drafted(3, 1, doubt), committed(3, 1, Origin.DRAFT, 0.25)),
        *(Drafted(4, 2, doubt), Drafted(5, 6, doubt), Drafted(6, 7, doubt)),
        *(Audited(3, 4, (3,)), committed(4, 2, Origin.VERIFIED, 0.25)),
        *(Retracted(5), committed(5, 9, Origin.OVERRIDE, 0.25, drafted=6), Committed(6, 7, Origin.TAKEOVER)),
        *(Drafted(7, 1, doubt), committed(7, 1, Origin.DRAFT, 0.25)),
    ]
    assert [ledger.follow(event).settled for event in events] == [
        *(None, 0.25),
        *(None, None, None),
        *(None, 0.25),
        *(None, 0.25, None),
        *(None, 0.25),
    ]
    assert ledger.caught == 1
    assert (ledger.audited, ledger.deviations, ledger.most_deviations) == (1, 1, 2)
    assert list(ledger.unread) == [7]


@settings(max_examples=200)
@given(pair=pairs(Mode.GATED, resets=True))
def test_a_ledger_never_underestimates_deviations(pair: Pair) -> None:
    """The final text never has more deviations than the ledger allows for; at the end the ledger is exact."""
    pair.run()
    ledger, text, deviations = Ledger(), list(PROMPT), 0
    text += pair.resumed
    for event in pair.events:
        ledger.follow(event)
        if isinstance(event, Committed):
            deviations += pair.models.cloud(text) != event.token_id
            text.append(event.token_id)
        assert ledger.most_deviations >= deviations
    assert (ledger.deviations, ledger.unread) == (deviations, {})
    assert ledger.caught == pair.device.tally.caught
    assert ledger.audited == pair.device.tally.skipped_tokens


def test_an_overridden_provisional_skip_counts_as_a_deviation() -> None:
    for fired, expected in ((True, (1, 0)), (False, (0, 1))):
        ledger = Ledger(stay_provisional=True)
        ledger.follow(Drafted(3, 1, signal(0.25), fired))
        assert list(ledger.unread) == ([] if fired else [3])
        ledger.follow(Retracted(3))
        entry = ledger.follow(committed(3, 9, Origin.OVERRIDE, 0.25, drafted=1, fired=fired))
        assert (ledger.caught, ledger.deviations) == expected
        assert (entry.skipped, entry.expected) == ((False, 0.0) if fired else (True, 0.25))
        assert ledger.unread == {}


def test_a_provisional_skip_that_stands_counts_as_read() -> None:
    ledger = Ledger(stay_provisional=True)
    ledger.follow(Drafted(3, 1, signal(0.25)))
    ledger.follow(Drafted(4, 2, signal(0.5)))
    assert ledger.follow(committed(3, 1, Origin.VERIFIED, 0.25)) == Entry(0.25, skipped=True, audited=1, expected=0.25)
    ledger.follow(Retracted(4))
    assert (ledger.audited, ledger.unread) == (1, {})


def test_a_gate_reports_its_tokens_to_its_control() -> None:
    control = Control(Promises(0.5, 1.0))
    gate = Budgeted(control)
    missed: list[SessionEvent] = [Drafted(3, 1, signal(0.2)), committed(3, 1, Origin.DRAFT, 0.2), Audited(3, 4, (3,))]
    for event in missed:
        gate.follow(event)
    assert control.totals == Totals(tokens=1, caught=0, audited=1, deviations=1)
    asked: list[SessionEvent] = [
        Drafted(4, 2, signal(0.2)),
        Retracted(4),
        committed(4, 5, Origin.OVERRIDE, 0.2, drafted=2),
    ]
    for event in asked:
        gate.follow(event)
    assert control.totals == Totals(tokens=2, caught=1, audited=1, deviations=1)
    assert control.totals.catch == 0.5


def test_open_gates_count_and_closed_ones_do_not() -> None:
    """Closing decides, not garbage collection: both gates stay referenced until the end."""
    spent = HeldOutRisks.of([0.01 * number for number in range(1, 61)], [True] * 60)
    control = Control(Promises(0.9, 1.0), spent)
    control.record_audit(7, 7, expected=0.7)
    assert control.threshold == 0.0, "the budget is spent"
    gates = [Budgeted(control), Budgeted(control)]
    for gate in gates:
        for position in range(3, 13):
            gate.follow(committed(position, 1, Origin.DRAFT, 0.001))
    assert control.threshold > 0.0, "unread tokens allow for more"
    gates[0].close()
    assert control.threshold > 0.0
    gates[1].close()
    assert control.threshold == 0.0
    gates[1].close()  # again

    def abandoned() -> None:
        gate = Budgeted(control)
        for position in range(3, 13):
            gate.follow(committed(position, 1, Origin.DRAFT, 0.001))

    abandoned()
    gc.collect()
    assert control.threshold > 0.0, "an unclosed gate counts, even without references"


def test_a_closed_gate_receives_nothing_and_closes_once() -> None:
    calls: list[str] = []

    class Noting(Gate):
        def fires(self, signal: Signal) -> bool:
            return True

        def follow(self, event: SessionEvent) -> None:
            calls.append("follow")

        def close(self) -> None:
            calls.append("close")

    gate = GateUntilClosed(Noting())
    for _ in range(2):
        gate.follow(Retracted(3))
        gate.close()
    assert calls == ["follow", "close"]


def test_a_gate_without_a_close_can_be_closed() -> None:
    class Older:
        """Has the methods of the former protocol, without deriving from it."""

        def fires(self, signal: Signal) -> bool:
            return False

        def follow(self, event: SessionEvent) -> None:
            return

    GateUntilClosed(cast(Gate, Older())).close()


def test_a_sampled_audit_counts_for_the_omitted_ones() -> None:
    """Seven deviations empty a budget; a single one does if one generation in eight is audited."""
    spent = []
    for weight, deviations in ((1.0, 6), (1.0, 7), (8.0, 1)):
        control = Control(Promises(0.9, 1.0), HeldOutRisks.of([0.01 * number for number in range(1, 61)], [True] * 60))
        gate = Budgeted(control)
        gate.follow(Audited(3, 13, tuple(range(3, 3 + deviations)), weight))
        spent.append(control.threshold == 0.0)
    assert spent == [False, True, True]
