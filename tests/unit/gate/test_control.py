"""The promises of the control on streams of tokens with known risk: with drift, with delay, and on any stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import InvalidRequest
from chaperone_common.types import Promises
from edge_client.gate import Control, HeldOutRisks
from edge_client.gate.control import RESERVE, RiskScale
from tests.support.device.risk_streams import held_out, run, stream


@pytest.mark.parametrize("catch", [0.8, 0.9, 0.95])
@pytest.mark.parametrize(("level", "scale"), [(0.05, 1.0), (0.15, 1.0), (0.15, 0.3), (0.02, 3.0)])
def test_the_promised_share_of_overrides_is_caught(catch: float, level: float, scale: float) -> None:
    """The tasks are as in the calibration, harder, and with risks that are wrong by a factor."""
    control = Control(Promises(catch, 1.0), held_out(1))
    _, caught, missed = run(control, stream(np.random.default_rng(2), 30_000, level, scale=scale))
    assert caught / (caught + missed) == pytest.approx(catch, abs=0.02)
    assert control.totals.catch == caught / (caught + missed)


@pytest.mark.parametrize("most", [0.005, 0.01, 0.02])
@pytest.mark.parametrize(("level", "scale"), [(0.05, 1.0), (0.15, 1.0), (0.15, 0.3)])
def test_deviations_stay_under_their_ceiling_but_close_to_it(most: float, level: float, scale: float) -> None:
    control = Control(Promises(0.0, most), held_out(1))
    _, _, missed = run(control, stream(np.random.default_rng(3), 30_000, level, scale=scale))
    assert 0.8 * most <= missed / 30_000 <= most + (RESERVE + 1) / 30_000


def test_the_factor_of_the_risks_is_learned_from_audits_and_forgotten_with_them() -> None:
    scale = RiskScale()
    assert scale.factor == 1.0
    for _ in range(400):
        scale.add(0.5, 1)
    assert scale.factor == pytest.approx(2.0, rel=0.1)
    for _ in range(400):
        scale.add(0.5, 0)
    assert scale.factor == pytest.approx(0.2, abs=0.1)
    for _ in range(400):
        scale.add(1e-6, 1)
    assert scale.factor > 5.0
    for _ in range(1000):
        scale.add(0.5, 0.5)
    assert scale.factor == pytest.approx(1.0, rel=0.1)


def test_a_drift_is_followed() -> None:
    """After the drift the likeliest overrides show a tenth of their risk, so the order is wrong, too."""
    control = Control(Promises(0.9, 1.0), held_out(1))
    random = np.random.default_rng(5)
    run(control, stream(random, 5000, 0.05))
    drifted = [(risk / 10 if risk > 0.2 else risk, overridden) for risk, overridden in stream(random, 20_000, 0.1)]
    _, caught, missed = run(control, iter(drifted))
    assert caught / (caught + missed) == pytest.approx(0.9, abs=0.02)


# Long streams that repeat a short drawn pattern: only dozens of deviations use a budget up.
FATES = st.tuples(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=8), st.integers(1, 60)).map(
    lambda drawn: drawn[0] * drawn[1]
)


@settings(max_examples=100)
@given(
    catch=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]),
    fates=FATES,
    delay=st.integers(0, 30),
)
def test_the_long_run_bound_holds_for_any_stream(catch: float, fates: list[tuple[float, bool]], delay: int) -> None:
    control = Control(Promises(catch, 1.0), held_out(1, tokens=400))
    _, caught, missed = run(control, iter(fates), delay=delay)
    assert missed <= (1 - catch) * (caught + missed) + RESERVE + 1 + delay + 1e-9


def run_with_sampled_audits(control: Control, *, texts: int, share: float) -> tuple[int, int]:
    """Run texts of 20 tokens, of which only a share is audited and learned from; return caught and missed."""
    random = np.random.default_rng(7)
    caught = missed = 0
    for _ in range(texts):
        skipped = []
        waiting = control.register()
        for risk, overridden in stream(random, 20, 0.1):
            fires = risk >= control.threshold
            control.record_token(risk, skipped=not fires)
            if fires and overridden:
                caught += 1
                control.record_caught()
            if not fires:
                skipped.append((risk, overridden))
                waiting.tokens, waiting.risk = waiting.tokens + 1, waiting.risk + risk
        missed += sum(overridden for _, overridden in skipped)
        control.unregister(waiting)
        if random.random() < share:
            risks, fates = [risk for risk, _ in skipped], [overridden for _, overridden in skipped]
            control.record_audit(len(skipped), sum(fates), expected=sum(risks), weight=1 / share)
    return caught, missed


@settings(max_examples=100)
@given(
    most=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    fates=FATES,
    delay=st.integers(0, 30),
)
def test_the_ceiling_holds_for_any_stream(most: float, fates: list[tuple[float, bool]], delay: int) -> None:
    control = Control(Promises(0.0, most), held_out(1, tokens=400))
    _, _, missed = run(control, iter(fates), delay=delay)
    assert missed <= most * len(fates) + RESERVE + 1 + delay + 1e-9


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_of_audits_keeps_the_promise_on_average(share: float) -> None:
    control = Control(Promises(0.9, 1.0), held_out(1))
    caught, missed = run_with_sampled_audits(control, texts=1500, share=share)
    assert caught / (caught + missed) == pytest.approx(0.9, abs=0.03)
    assert control.totals.catch == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("most", [0.005, 0.02])
def test_a_share_of_audits_keeps_the_ceiling_on_average(share: float, most: float) -> None:
    """The tolerance is three standard deviations of the number of allowed deviations that are found."""
    control = Control(Promises(0.0, most), held_out(1))
    _, missed = run_with_sampled_audits(control, texts=1500, share=share)
    allowed = most * 30_000
    assert missed == pytest.approx(allowed, rel=3 / np.sqrt(share * allowed))


def test_inconclusive_held_out_tokens_give_way_to_audits() -> None:
    """60 overrides cannot prove that any threshold catches 0.99 of them; the workload's own tokens can."""
    known = HeldOutRisks.of([0.01] * 140 + [0.5] * 60, [False] * 140 + [True] * 60)
    control = Control(Promises(0.99, 1.0), known)
    assert control.threshold == 0.0
    run(control, stream(np.random.default_rng(8), 3000, 0.1))
    assert control.threshold > 0.0


def test_total_promises_verify_every_token() -> None:
    tame = HeldOutRisks.of([0.2 + number / 1000 for number in range(100)], [number % 5 == 0 for number in range(100)])
    for promises in (Promises(1.0, 1.0), Promises(0.0, 0.0)):
        control = Control(promises, tame)
        run(control, iter([(0.3, False)] * 200))
        assert control.threshold == 0.0


def test_after_zero_risks_alone_any_risk_fires() -> None:
    control = Control(Promises(0.9, 1.0))
    run(control, iter([(0.0, False)] * 50))
    assert 0.0 < control.threshold < 1e-5


def test_a_spent_budget_fires_at_every_token_until_overrides_refill_it() -> None:
    control = Control(Promises(0.9, 1.0), held_out(1))
    control.record_audit(7, 7, expected=0.7)
    assert control.threshold == 0.0
    for _ in range(20):
        control.record_caught()
    assert control.threshold > 0.0


@pytest.mark.parametrize("promises", [Promises(0.9, 1.0), Promises(0.0, 0.1)])
def test_a_spent_budget_fires_at_every_token_unless_unread_tokens_refill_it(promises: Promises) -> None:
    control = Control(promises, held_out(1))
    control.record_audit(7, 7, expected=0.7)  # 6.3 over
    assert control.threshold == 0.0
    waiting = control.register()
    waiting.tokens = 10
    assert control.threshold > 0.0
    control.unregister(waiting)  # no audit will read them
    assert control.threshold == 0.0


def test_without_held_out_tokens_every_token_fires_at_first() -> None:
    control = Control(Promises())
    assert control.threshold == 0.0
    run(control, stream(np.random.default_rng(6), 200, 0.05))
    assert 0.0 < control.threshold < 1.0


def test_promises_are_checked_and_can_be_switched_off() -> None:
    with pytest.raises(InvalidRequest, match="catch: 1.5 is outside"):
        Promises(catch=1.5)
    with pytest.raises(InvalidRequest, match="max_deviation: -1 is outside"):
        Promises(max_deviation=-1)
    free = Control(Promises(0.0, 1.0))
    assert free.threshold > 1.0
    strict = Control(Promises(catch=1.0), held_out(1))
    assert strict.threshold == 0.0
    none_may_deviate = Control(Promises(0.0, 0.0), held_out(1))
    assert none_may_deviate.threshold == 0.0


def test_held_out_tokens_give_a_new_client_no_budget() -> None:
    """The bound has the same terms for any held-out tokens: after seven deviations, every token fires."""
    tame = HeldOutRisks.of([0.01] * 4000, [number < 40 for number in range(4000)])
    for known in (tame, held_out(1), held_out(1, level=0.3)):
        control = Control(Promises(0.95, 1.0), known)
        control.record_audit(6, 6, expected=0.06)
        control.record_audit(1, 1, expected=0.01)
        assert control.threshold == 0.0
