"""Strategies by name, and their behaviour in virtual time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation, TimedEvent, simulate
from benchmarks.strategies.families import FAMILIES, MODES, NAMES, strategy_named
from chaperone_common.errors import ConfigError
from chaperone_common.frames import Draft, Verdict
from chaperone_common.session import Committed, Drafted
from chaperone_common.types import Mode, Origin
from edge_client.planner import AdaptivePlanner
from link_emulator.profile import Profile
from tests.support.benchmarks.traces import trace_of

# A forward takes 50 ms in the cloud and 10 ms on the device, and the round trip 100 ms.
SCENARIO = Scenario(
    Profile.fixed(100),
    CloudCosts(read_ms=Curve.of((1, 50)), prefill_ms=10),
    DraftCosts(step_ms=10, chunk=Curve.of((1, 1)), rows=Curve.of((1, 1))),
)
PEERS = [f"{family}-{tokens}" for family in FAMILIES for tokens in (1, 2, 5)]


def spans_in_flight(simulation: Simulation) -> list[tuple[TimedEvent, int]]:
    """Return each event with the number of spans in flight; an override voids those after it."""
    flying: list[int] = []
    moments = []
    for moment in simulation.timeline:
        match moment.event:
            case Draft(start=start):
                flying.append(start)
            case Verdict(position=position):
                flying = [start for start in flying[1:] if start > position]
            case _:
                pass
        moments.append((moment, len(flying)))
    return moments


def sent_ms(simulation: Simulation) -> list[float]:
    return [moment.at_ms for moment in simulation.timeline if isinstance(moment.event, Draft)]


@pytest.mark.parametrize(
    "name",
    ["", "sync", "sync-", "sync-0", "sync-08", "sync--8", "sync-8 ", "Sync-8", "sync-٣", "pearl-8", "exact-8", "EXACT"],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    known = "exact, gated, edge, cloud, sync-N, overlap-N, acespec-N, specedge-N"
    with pytest.raises(ConfigError, match=f"is none of {known}") as error:
        strategy_named(name)
    assert repr(name) in error.value.message


def test_a_span_has_a_limit() -> None:
    assert strategy_named("sync-64").name == "sync-64"
    with pytest.raises(ConfigError, match="'sync-65': a span has at most 64 tokens"):
        strategy_named("sync-65")


def test_modes_use_the_adaptive_planner_and_all_names_are_listed() -> None:
    for mode in MODES:
        assert strategy_named(str(mode)).planner == AdaptivePlanner(mode)
    assert NAMES[: len(MODES)] == MODES
    assert set(Mode) - set(MODES) == {Mode.CONDITIONED}
    with pytest.raises(ConfigError, match="'conditioned' is none of exact, gated, edge, cloud, sync-N"):
        strategy_named("conditioned")


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("pattern", ["+++++++++++", "-----", "+-++--+++-+++", "++++++-"])
def test_peers_write_the_clouds_own_text(name: str, pattern: str) -> None:
    trace = trace_of(pattern, ended=True)
    simulation = simulate(trace, SCENARIO, strategy_named(name))
    assert simulation.error is None
    assert simulation.token_ids == trace.token_ids


def test_sync_takes_one_round_trip_per_span_and_bonus() -> None:
    simulation = simulate(trace_of("+" * 9), SCENARIO, strategy_named("sync-2"))
    assert simulation.stats.round_trips == 3
    assert simulation.stats.hidden_round_trips == 0
    assert simulation.stats.decode_ms == pytest.approx(3 * (2 * 10 + 100 + 50))


def test_sync_does_not_draft_while_it_waits() -> None:
    simulation = simulate(trace_of("++-++++-+++"), SCENARIO, strategy_named("sync-3"))
    drafted = [flying for moment, flying in spans_in_flight(simulation) if isinstance(moment.event, Drafted)]
    assert len(drafted) >= 9
    assert set(drafted) == {0}
    assert max(flying for _, flying in spans_in_flight(simulation)) == 1


def test_overlap_drafts_while_a_span_is_verified_and_has_two_in_flight() -> None:
    simulation = simulate(trace_of("+" * 12), SCENARIO, strategy_named("overlap-2"))
    moments = spans_in_flight(simulation)
    assert max(flying for _, flying in moments) == 2
    first, second = sent_ms(simulation)[:2]
    assert second - first == pytest.approx(20), "two more drafts, and no verdict between"
    sync = simulate(trace_of("+" * 12), SCENARIO, strategy_named("sync-2"))
    assert simulation.decode_tokens_per_s > sync.decode_tokens_per_s


def test_a_hit_branch_becomes_the_next_span_at_once() -> None:
    """The draft's second choice at the override was branched off during the forward, so it needs no new draft."""
    simulation = simulate(trace_of("+-++++"), SCENARIO, strategy_named("acespec-2"))
    overridden_ms = next(
        moment.at_ms
        for moment in simulation.timeline
        if isinstance(moment.event, Committed) and moment.event.origin is Origin.OVERRIDE
    )
    assert sent_ms(simulation)[1] == pytest.approx(overridden_ms)
    sync = simulate(trace_of("+-++++"), SCENARIO, strategy_named("sync-2"))
    saved_ms = sync.stats.decode_ms - simulation.stats.decode_ms  # type: ignore[operator]
    assert saved_ms == pytest.approx(2 * 10 + 10), "the second span's drafts, and the last token's"


def test_after_an_accepted_span_the_next_one_is_drafted_already() -> None:
    simulation = simulate(trace_of("+" * 9), SCENARIO, strategy_named("acespec-2"))
    gaps_ms = [later - earlier for earlier, later in pairwise(sent_ms(simulation))]
    assert gaps_ms[0] == pytest.approx(150 + 10), "one more draft, in place of the one that the bonus used up"
    assert max(flying for _, flying in spans_in_flight(simulation)) == 1


def test_a_tree_is_verified_whole_while_the_device_waits() -> None:
    simulation = simulate(trace_of("++-+-+++--" * 2), SCENARIO, strategy_named("specedge-8"))
    assert max(flying for _, flying in spans_in_flight(simulation)) == 1
    trees = [moment.event for moment in simulation.timeline if isinstance(moment.event, Draft)]
    assert {len(tree.token_ids) + len(tree.branches) for tree in trees[:-1]} == {8}
    assert all(tree.branches for tree in trees), "second choices of an unsure draft are worth a token"


def test_a_tree_drafted_ahead_is_sent_at_the_verdict() -> None:
    """If the tree and the guessed bonus are accepted, the next tree is ready at the answer."""
    simulation = simulate(trace_of("+" * 40), SCENARIO, strategy_named("specedge-8"))
    verdict_ms = [moment.at_ms for moment in simulation.timeline if isinstance(moment.event, Verdict)]
    assert sent_ms(simulation)[1] == pytest.approx(verdict_ms[0])
