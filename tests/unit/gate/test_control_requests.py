"""The number of tokens that the control asks about: close to hindsight, with late audits, and in a first text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest

from chaperone_common.types import Promises
from edge_client.gate import Control
from edge_client.gate.control import Unread
from tests.support.device.risk_streams import held_out, run, stream


def asked_in_hindsight(tokens: Sequence[tuple[float, bool]], missed: int) -> int:
    """Return the number of tokens at which a fixed threshold fires if it misses as many."""
    risks = sorted((risk for risk, overridden in tokens if overridden), reverse=True)
    threshold = risks[len(risks) - missed - 1]
    return sum(risk >= threshold for risk, _ in tokens)


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


def test_a_ceiling_is_used_up_with_risks_wrong_by_a_factor_of_two() -> None:
    """Once the factor is learned, the gate fires as often as with correct risks."""
    asked = []
    for scale in (0.5, 1.0, 2.0):
        control, random = Control(Promises(0.0, 0.01), held_out(1)), np.random.default_rng(9)
        run(control, stream(random, 10_000, 0.05, scale=scale))
        asked.append(run(control, stream(random, 20_000, 0.05, scale=scale))[0])
    assert max(asked) <= 1.1 * min(asked)


def first_and_later(catch: float, level: float) -> tuple[float, float]:
    """Return the mean tokens asked about in the first 128 tokens of a client, and in 128 after its tenth text."""
    first = later = 0
    for seed in range(40):
        control, random = Control(Promises(catch, 1.0), held_out(1)), np.random.default_rng(100 + seed)
        first += run(control, stream(random, 128, level))[0]
        run(control, stream(random, 9 * 128, level))
        later += run(control, stream(random, 128, level))[0]
    return first / 40, later / 40


@pytest.mark.parametrize(("catch", "level"), [(0.95, 0.02), (0.95, 0.05), (0.95, 0.3), (0.8, 0.05), (0.8, 0.3)])
def test_a_first_text_asks_about_as_many_tokens_as_later_ones(catch: float, level: float) -> None:
    """The texts are easier than the held-out tokens, alike, or harder."""
    first, later = first_and_later(catch, level)
    assert first == pytest.approx(later, rel=0.25)
