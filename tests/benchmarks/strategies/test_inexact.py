"""BiLD and U-HLM in virtual time: sent spans, accepted tokens, and rollbacks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.strategies.families import strategy_named
from benchmarks.strategies.inexact import BILD_TOKENS
from benchmarks.virtual.replay import cut
from chaperone_common.errors import ConfigError
from chaperone_common.frames import Draft, Verdict
from chaperone_common.session import Committed, Drafted
from chaperone_common.types import Mode, Origin
from link_emulator.profile import Profile
from tests.support.benchmarks.traces import EOS, SURE, extended_trace, trace_of

# A forward takes 50 ms in the cloud and 10 ms on the device, and the round trip 100 ms.
SCENARIO = Scenario(
    Profile.fixed(100),
    CloudCosts(read_ms=Curve.of((1, 50)), prefill_ms=10),
    DraftCosts(step_ms=10, chunk=Curve.of((1, 1)), rows=Curve.of((1, 1)), disagreement_ms=2),
)
ANSWER_MS = 150
BILD, UHLM = strategy_named("bild-0.6-2"), strategy_named("uhlm-0.1")


def drafts(simulation: Simulation) -> list[tuple[int, ...]]:
    """Return the tokens of each span that was sent."""
    return [moment.event.token_ids for moment in simulation.timeline if isinstance(moment.event, Draft)]


def events_while_asked(simulation: Simulation) -> list[type]:
    """Yield the events between a span and its verdict."""
    asked, found = False, []
    for moment in simulation.timeline:
        asked = isinstance(moment.event, Draft) or (asked and not isinstance(moment.event, Verdict))
        if asked and not isinstance(moment.event, Draft):
            found.append(type(moment.event))
    return found


def test_bild_has_all_tokens_judged_except_the_unsure_one() -> None:
    simulation = simulate(extended_trace(trace_of("++-+++-")), SCENARIO, BILD)
    assert simulation.error is None
    assert simulation.token_ids == (100, 101, 102, 103, 104, 105, 106)
    assert drafts(simulation) == [(100, 101), (103, 104, 105)]
    assert simulation.origins.count(Origin.OVERRIDE) == 2, "where it was unsure, the cloud wrote"
    assert simulation.stats.decode_ms == pytest.approx(3 * 10 + ANSWER_MS + 4 * 10 + ANSWER_MS)


def test_bild_lets_the_cloud_write_if_its_first_token_is_unsure() -> None:
    simulation = simulate(extended_trace(trace_of("--+")), SCENARIO, BILD)
    assert simulation.token_ids == (100, 101, 102)
    assert drafts(simulation)[:2] == [(), ()]


def test_bild_keeps_likely_tokens_and_rolls_back_to_unlikely_ones() -> None:
    trace = trace_of("+-++-+-++", wrong=SURE)
    simulation = simulate(extended_trace(trace, cross_entropies={1: 1.9, 4: 2.0, 6: 2.1}), SCENARIO, BILD)
    assert simulation.token_ids == (100, 201, 102, 103, 204, 105, 106, 107, 108)
    assert drafts(simulation) == [(100, 201, 102, 103, 204, 105, 206), (107, 108)], "astray it is unsure at once"
    assert simulation.stats.overridden_tokens == 1
    assert simulation.stats.audited_tokens == 0, "no token was final before its judgement"


def test_bild_at_no_leniency_writes_the_clouds_own_text() -> None:
    trace = extended_trace(trace_of("+-++--+" * 3, ended=True, wrong=SURE), cross_entropies={1: 0.1})
    for name in ("bild-0-0", "bild-0.95-0"):
        assert simulate(trace, SCENARIO, strategy_named(name)).token_ids == trace.token_ids


def test_bild_limits_its_spans_and_waits_for_the_verdict() -> None:
    simulation = simulate(extended_trace(trace_of("+" * 25)), SCENARIO, BILD)
    assert [len(tokens) for tokens in drafts(simulation)] == [BILD_TOKENS, BILD_TOKENS, 25 - 2 * (BILD_TOKENS + 1)]
    assert events_while_asked(simulation) == []


def test_bild_ends_at_a_likely_enough_end_of_text() -> None:
    trace = extended_trace(trace_of("++-+", wrong=SURE), cross_entropies={2: 1.0})
    ending = replace(trace.proposals[2], token_id=EOS)
    trace = replace(trace, proposals=(*trace.proposals[:2], ending, *trace.proposals[3:]))
    assert simulate(trace, SCENARIO, BILD).token_ids == (100, 101, EOS)
    assert simulate(trace, SCENARIO, strategy_named("bild-0.6-0.5")).token_ids == trace.token_ids


def test_uhlm_skips_below_the_threshold_and_sends_skipped_tokens_with_the_next_request() -> None:
    trace = extended_trace(trace_of("++-++-+"), disagreements=(0.0, 0.09, 0.1, 0.0, 0.0, 0.5, 0.0))
    simulation = simulate(trace, SCENARIO, UHLM)
    assert simulation.error is None
    assert simulation.token_ids == trace.token_ids
    asked = [moment.event for moment in simulation.timeline if isinstance(moment.event, Draft)]
    assert [(draft.token_ids, draft.final_before - draft.start) for draft in asked] == [
        ((100, 101, 202), 2),
        ((103, 104, 205), 2),
    ]
    assert events_while_asked(simulation) == [], "no token is drafted until the cloud has answered"
    assert simulation.stats.decode_ms == pytest.approx(7 * (10 + 2) + 2 * ANSWER_MS), (
        "measuring the disagreement takes 2 ms a token"
    )


def test_uhlm_keeps_skipped_tokens_and_the_audit_counts_them() -> None:
    trace = extended_trace(trace_of("+-+-+", wrong=SURE), disagreements=(0.0, 0.05, 0.0, 0.3, 0.0))
    simulation = simulate(trace, SCENARIO, UHLM)
    assert simulation.token_ids == (100, 201, 102, 103, 104)
    assert (simulation.stats.deviations, simulation.stats.skipped_tokens) == (1, 4)
    everything = simulate(trace, SCENARIO, strategy_named("uhlm-0"))
    assert everything.token_ids == trace.token_ids
    assert everything.stats.skipped_tokens == 0


def test_a_skipped_token_is_final_as_soon_as_it_is_drafted() -> None:
    simulation = simulate(extended_trace(trace_of("+++")), SCENARIO, UHLM)
    drafted = [moment.at_ms for moment in simulation.timeline if isinstance(moment.event, Drafted)]
    committed = [moment.at_ms for moment in simulation.timeline if isinstance(moment.event, Committed)]
    assert drafted == committed


@pytest.mark.parametrize(("name", "column"), [("bild-0.6-2", "cross-entropies"), ("uhlm-0.1", "disagreements")])
def test_a_file_without_the_values_is_refused_with_the_remedy(name: str, column: str) -> None:
    trace = replace(trace_of("+-"), source="some.jsonl.gz")
    message = f"some.jsonl.gz: trace by hand has no {column}; add it with `python -m benchmarks extend some.jsonl.gz`"
    with pytest.raises(ConfigError, match=message):
        simulate(trace, SCENARIO, strategy_named(name))


def test_bild_and_uhlm_do_not_promise_the_clouds_text() -> None:
    assert not BILD.exact
    assert not UHLM.exact
    assert (BILD.mode, UHLM.mode) == (Mode.EXACT, Mode.GATED)
    assert [strategy_named(name).exact for name in ("exact", "sync-4", "gated", "edge")] == [True, True, False, False]


@pytest.mark.parametrize("name", ["bild", "bild-0.6", "bild-0.6-2-1", "bild-.6-2", "bild--1-2", "uhlm", "uhlm-0.1-2"])
def test_a_name_without_thresholds_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="bild-FALLBACK-ROLLBACK, uhlm-THRESHOLD, with .* such as bild-0.6-2"):
        strategy_named(name)


@pytest.mark.parametrize("name", ["bild-1.5-2", "uhlm-2"])
def test_a_probability_is_at_most_one(name: str) -> None:
    with pytest.raises(ConfigError, match="is no probability; give at most 1"):
        strategy_named(name)


def test_a_cut_trace_keeps_the_values_of_both_strategies() -> None:
    trace = cut(extended_trace(trace_of("+-++-", wrong=SURE), cross_entropies={1: 1.0, 4: 1.0}), 3)
    assert trace.cross_entropies == {1: 1.0}
    assert simulate(trace, SCENARIO, BILD).token_ids == (100, 201, 102)
    assert simulate(trace, SCENARIO, UHLM).token_ids == (100, 201, 102)
    assert cut(trace_of("+-"), 1).cross_entropies is None
