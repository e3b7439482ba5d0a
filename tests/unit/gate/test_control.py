"""The promises of the control on streams of tokens with known risk: with drift, with delay, and on any stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ConfigError, InvalidRequest
from chaperone_common.types import Promises
from edge_client.gate import Control, HeldOutRisks
from edge_client.gate.control import RESERVE, RiskScale, Unread
from edge_client.gate.risk_histogram import PRIOR, RiskHistogram

DELAY = 20  # tokens between a skip and its audit


def stream(
    random: np.random.Generator, tokens: int, level: float, *, scale: float = 1.0
) -> Iterator[tuple[float, bool]]:
    """Yield risks and overrides; `level` is their mean, `scale` the error factor of the risks."""
    risks = np.minimum(random.gamma(0.25, level / 0.25, tokens), 0.95)
    overridden = random.random(tokens) < risks
    yield from zip(np.minimum(risks * scale, 1.0).tolist(), overridden.tolist(), strict=True)


def run(
    control: Control, tokens: Iterator[tuple[float, bool]], *, delay: int = DELAY, read_on_firing: bool = True
) -> tuple[int, int, int]:
    """Apply the control's threshold to a stream; return the counts of fired, caught and missed tokens."""
    unread: deque[tuple[float, bool, Unread]] = deque()
    generations = cycle((control.register(), control.register()))  # they take turns
    asked = caught = missed = 0

    def audit() -> None:
        risk, overridden, generation = unread.popleft()
        generation.tokens -= 1
        generation.risk = generation.risk - risk if generation.tokens else 0.0
        control.record_audit(1, int(overridden), expected=risk)

    for risk, overridden in tokens:
        fires = risk >= control.threshold
        control.record_token(risk, skipped=not fires)
        asked += fires
        if fires and overridden:
            caught += 1
            control.record_caught()
        if not fires:
            missed += overridden
            generation = next(generations)
            generation.tokens, generation.risk = generation.tokens + 1, generation.risk + risk
            unread.append((risk, overridden, generation))
        while len(unread) > delay or (read_on_firing and fires and unread):
            audit()
    while unread:
        audit()
    return asked, caught, missed


def first_and_later(catch: float, level: float) -> tuple[float, float]:
    """Return the mean tokens asked about in the first 128 tokens of a client, and in 128 after its tenth text."""
    first = later = 0
    for seed in range(40):
        control, random = Control(Promises(catch, 1.0), held_out(1)), np.random.default_rng(100 + seed)
        first += run(control, stream(random, 128, level))[0]
        run(control, stream(random, 9 * 128, level))
        later += run(control, stream(random, 128, level))[0]
    return first / 40, later / 40


def asked_in_hindsight(tokens: Sequence[tuple[float, bool]], missed: int) -> int:
    """Return the number of tokens at which a fixed threshold fires if it misses as many."""
    risks = sorted((risk for risk, overridden in tokens if overridden), reverse=True)
    threshold = risks[len(risks) - missed - 1]
    return sum(risk >= threshold for risk, _ in tokens)


@cache
def held_out(seed: int, *, level: float = 0.05, tokens: int = 4000) -> HeldOutRisks:
    drawn = list(stream(np.random.default_rng(seed), tokens, level))
    return HeldOutRisks.of([risk for risk, _ in drawn], [overridden for _, overridden in drawn])


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


def test_requests_are_close_to_a_threshold_chosen_in_hindsight() -> None:
    tokens = list(stream(np.random.default_rng(4), 30_000, 0.1))
    control = Control(Promises(0.95, 1.0), held_out(1))
    asked, caught, missed = run(control, iter(tokens))
    reached = caught / (caught + missed)
    assert asked <= 1.25 * asked_in_hindsight(tokens, missed)
    assert reached == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("most", [0.01, 0.02])
def test_long_audits_do_not_raise_the_request_rate(most: float) -> None:
    """With many concurrent texts, chance alone finds more deviations at once than a budget holds."""
    tokens = list(stream(np.random.default_rng(4), 30_000, 0.03))
    control = Control(Promises(0.0, most), held_out(1))
    asked, _, missed = run(control, iter(tokens), delay=1500, read_on_firing=False)
    assert 0.8 * most <= missed / 30_000 <= 1.1 * most
    assert asked <= 1.5 * asked_in_hindsight(tokens, missed)


def run_many(control: Control, texts: Sequence[Sequence[tuple[float, bool]]]) -> list[tuple[float, bool, bool]]:
    """Run texts concurrently, each read when a token fires or 60 tokens wait, so that audits are very late.

    Return for each token its risk, whether it was overridden, and whether the gate fired.
    """
    fates: list[tuple[float, bool, bool]] = []
    readers = [(tokens, control.register(), deque[bool]()) for tokens in texts]

    def audit(unread: Unread, waiting: deque[bool]) -> None:
        foretold, unread.tokens, unread.risk = unread.risk, 0, 0.0
        control.record_audit(len(waiting), sum(waiting), expected=foretold)
        waiting.clear()

    for place in range(len(texts[0])):
        for tokens, unread, waiting in readers:
            risk, overridden = tokens[place]
            fires = risk >= control.threshold
            fates.append((risk, overridden, fires))
            control.record_token(risk, skipped=not fires)
            if fires and overridden:
                control.record_caught()
            if not fires:
                waiting.append(overridden)
                unread.tokens, unread.risk = unread.tokens + 1, unread.risk + risk
            if fires or len(waiting) >= 60:
                audit(unread, waiting)
    for _, unread, waiting in readers:
        audit(unread, waiting)
    return fates


def asked_over_hindsight(fates: Sequence[tuple[float, bool, bool]]) -> float:
    missed = sum(overridden and not fires for _, overridden, fires in fates)
    asked = sum(fires for _, _, fires in fates)
    return asked / asked_in_hindsight([(risk, overridden) for risk, overridden, _ in fates], missed)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("promises", [Promises(0.95, 1.0), Promises(0.8, 1.0), Promises(0.0, 0.005)])
def test_concurrent_texts_barely_raise_the_request_rate(promises: Promises, scale: float) -> None:
    random = np.random.default_rng(6)
    texts = [list(stream(random, 800, 0.02, scale=scale)) for _ in range(40)]
    fates = run_many(Control(promises, held_out(1)), texts)
    missed = sum(overridden and not fires for _, overridden, fires in fates)
    overrides = sum(overridden for _, overridden, _ in fates)
    assert missed <= (1 - promises.catch) * overrides + 10
    assert missed <= promises.max_deviation * len(fates) + 10
    assert asked_over_hindsight(fates) <= 1.5


@pytest.mark.parametrize("seed", [6, 7, 8])
def test_clustered_deviations_do_not_raise_the_request_rate(seed: int) -> None:
    """In half of all stretches of 100 tokens the risks are too low, and many deviations are found at once."""
    random = np.random.default_rng(seed)
    texts = [
        [token for _ in range(3) for token in stream(random, 100, 0.1, scale=random.choice([0.3, 2.0]))]
        for _ in range(40)
    ]
    control = Control(Promises(0.9, 1.0), held_out(1))
    fates = run_many(control, texts)
    assert control.totals.catch == pytest.approx(0.9, abs=0.02)
    assert asked_over_hindsight(fates) <= 1.1


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


def test_a_ceiling_is_used_up_with_risks_wrong_by_a_factor_of_two() -> None:
    """Once the factor is learned, the gate fires as often as with correct risks."""
    asked = []
    for scale in (0.5, 1.0, 2.0):
        control, random = Control(Promises(0.0, 0.01), held_out(1)), np.random.default_rng(9)
        run(control, stream(random, 10_000, 0.05, scale=scale))
        asked.append(run(control, stream(random, 20_000, 0.05, scale=scale))[0])
    assert max(asked) <= 1.1 * min(asked)


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


# The first text of a client


@pytest.mark.parametrize(("catch", "level"), [(0.95, 0.02), (0.95, 0.05), (0.95, 0.3), (0.8, 0.05), (0.8, 0.3)])
def test_a_first_text_asks_about_as_many_tokens_as_later_ones(catch: float, level: float) -> None:
    """The texts are easier than the held-out tokens, alike, or harder."""
    first, later = first_and_later(catch, level)
    assert first == pytest.approx(later, rel=0.25)


def test_held_out_tokens_count_as_few_however_many_there_are() -> None:
    few, many = (np.linspace(0.0, 0.5, count) for count in (600, 6000))
    known = [RiskHistogram.of(risks) for risks in (few, many)]
    assert [histogram.tokens for histogram in known] == pytest.approx([PRIOR, PRIOR])
    assert known[0].mass == pytest.approx(known[1].mass, rel=0.01)
    assert RiskHistogram.of(few[:20]).tokens == 20, "none counts as more than itself"


def test_held_out_tokens_give_a_new_client_no_budget() -> None:
    """The bound has the same terms for any held-out tokens: after seven deviations, every token fires."""
    tame = HeldOutRisks.of([0.01] * 4000, [number < 40 for number in range(4000)])
    for known in (tame, held_out(1), held_out(1, level=0.3)):
        control = Control(Promises(0.95, 1.0), known)
        control.record_audit(6, 6, expected=0.06)
        control.record_audit(1, 1, expected=0.01)
        assert control.threshold == 0.0


# Conformal risk control


def test_calibrated_thresholds_by_hand() -> None:
    """Overrides have the risks .4, .6 and .8; the bound always includes the loss of one more token."""
    known = HeldOutRisks.of([0.8, 0.1, 0.2, 0.4, 0.6, 0.9], [True, False, False, True, True, False])
    assert known.for_catch(1.0) == 0.0
    assert known.for_catch(0.5) == 0.6  # one missed: 1 - 0.5 * 3 + 0.5 <= 0; two would be 0.5 + 0.5
    assert known.for_deviation(2 / 7) == 0.6  # (1 + 1) / 7
    assert known.for_deviation(0.1) == 0.0
    assert known.for_deviation(1.0) > 1.0


def test_tokens_of_equal_risk_fire_together() -> None:
    known = HeldOutRisks.of([0.1, 0.3, 0.3, 0.3], [False, False, False, True])
    assert known.for_deviation(0.2) == 0.3


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), catch=st.sampled_from([0.8, 0.9, 0.95]))
def test_a_calibrated_threshold_keeps_its_promise_on_its_own_data(seed: int, catch: float) -> None:
    known = held_out(seed, tokens=2000)
    threshold = known.for_catch(catch)
    missed = int(known.overridden[known.risks < threshold].sum())
    assert missed + catch <= (1 - catch) * int(known.overridden.sum()) + 1e-9


def test_calibrated_thresholds_keep_the_promise_on_average_on_new_data() -> None:
    """The mean loss of fresh streams is at most 0, up to four standard errors."""
    losses = []
    for seed in range(60):
        threshold = held_out(seed, tokens=1000).for_catch(0.9)
        fates = list(stream(np.random.default_rng(10_000 + seed), 1000, 0.05))
        missed = sum(overridden for risk, overridden in fates if risk < threshold)
        losses.append((missed - 0.1 * sum(overridden for _, overridden in fates)) / 1000)
    assert np.mean(losses) <= 4 * np.std(losses) / np.sqrt(len(losses))


def test_invalid_held_out_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 risks of 1 tokens"):
        HeldOutRisks.of([0.1, 0.2], [True])
    with pytest.raises(ConfigError, match="outside"):
        HeldOutRisks.of([1.2], [True])
