"""Token trees in virtual time: the text is the cloud's for all branches, and accepted branches save rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.simulation.strategy import Strategy
from benchmarks.simulation.trace import Trace
from benchmarks.strategies.families import strategy_named
from chaperone_common.frames import Draft, Verdict
from chaperone_common.session import Drafted
from chaperone_common.types import Mode, Origin
from edge_client.gate import Always
from edge_client.planner import FixedPlanner
from link_emulator.profile import Profile, ResetProfile
from tests.support.benchmarks.traces import trace_of
from tests.support.device.branching_planner import BranchingPlanner

# A forward takes 50 ms in the cloud and 10 ms on the device, and the round trip 100 ms.
SCENARIO = Scenario(
    Profile.fixed(100),
    CloudCosts(read_ms=Curve.of((1, 50)), prefill_ms=10),
    DraftCosts(step_ms=10, chunk=Curve.of((1, 1)), rows=Curve.of((1, 1))),
)
PATTERNS = ("+++-" * 10, "-" * 40, "++-+-+++--" * 4)


def unforeseen(trace: Trace) -> Trace:
    """Return the trace with second choices that no override ever takes."""
    return replace(trace, proposals=tuple(replace(proposal, runner_up=401) for proposal in trace.proposals))


def drafts(simulation: Simulation) -> list[Draft]:
    return [moment.event for moment in simulation.timeline if isinstance(moment.event, Draft)]


def further(simulation: Simulation) -> int:
    """Return the tokens that verdicts on branches brought."""
    verdicts = [moment.event for moment in simulation.timeline if isinstance(moment.event, Verdict)]
    return sum(len(verdict.further_token_ids) for verdict in verdicts)


@pytest.mark.parametrize("tokens", [8, 16, 32])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_overrides_by_the_runner_up_cost_no_further_round(pattern: str, tokens: int) -> None:
    trace = trace_of(pattern)
    tree = simulate(trace, SCENARIO, strategy_named(f"specedge-{tokens}"))
    chain_tokens = max(len(draft.token_ids) for draft in drafts(tree))
    chain = simulate(trace, SCENARIO, strategy_named(f"sync-{chain_tokens}"))
    assert tree.error is None
    assert tree.token_ids == chain.token_ids == trace.token_ids
    assert further(tree) > 0
    assert len(drafts(tree)) < len(drafts(chain))
    assert tree.stats.round_trips < chain.stats.round_trips


@pytest.mark.parametrize("tokens", [4, 8, 16, 32])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_overrides_by_other_tokens_do_not_change_the_text(pattern: str, tokens: int) -> None:
    trace = unforeseen(trace_of(pattern))
    tree = simulate(trace, SCENARIO, strategy_named(f"specedge-{tokens}"))
    assert tree.error is None
    assert tree.token_ids == trace.token_ids
    assert further(tree) == 0


def test_one_verdict_confirms_a_branch_that_stands() -> None:
    """The draft of 101 is wrong; its second choice is right, and so is its drafted continuation."""
    tree = simulate(trace_of("+-++"), SCENARIO, strategy_named("specedge-8"))
    assert len(drafts(tree)) == 1
    assert tree.token_ids == (100, 101, 102, 103)
    assert tree.origins == (Origin.VERIFIED, Origin.OVERRIDE, Origin.VERIFIED, Origin.VERIFIED)


@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
def test_a_tree_has_as_many_tokens_as_its_name_says_unless_the_text_is_nearly_full(tokens: int) -> None:
    simulation = simulate(trace_of("++-+" * 20), SCENARIO, strategy_named(f"specedge-{tokens}"))
    sizes = {draft.start: len(draft.token_ids) + len(draft.branches) for draft in drafts(simulation)}
    assert {size for start, size in sizes.items() if start + tokens < 4 + 80} == {tokens}
    assert max(sizes.values()) == tokens


def test_the_likeliest_tokens_are_chosen() -> None:
    """A sure draft is sent as a chain; an unsure draft also with second choices, within the trusted part."""
    sure = drafts(simulate(trace_of("+" * 40), SCENARIO, strategy_named("specedge-8")))
    unsure = drafts(simulate(trace_of("-" * 40), SCENARIO, strategy_named("specedge-8")))
    assert (len(sure[0].token_ids), len(sure[0].branches)) == (8, 0)
    assert max(len(draft.token_ids) for draft in unsure) < 8
    assert all(draft.branches[0].parent == draft.start - 1 for draft in unsure[:-1]), (
        "first of all for a wrong first token"
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_branches_leave_the_chain_once_a_depth_and_at_most_three_continue(pattern: str) -> None:
    simulation = simulate(trace_of(pattern), SCENARIO, strategy_named("specedge-32"))
    for draft in drafts(simulation):
        parents = [branch.parent for branch in draft.branches]
        assert len(set(parents)) == len(parents), "no token has two branch tokens after it"
        runner_ups = {index for index, parent in enumerate(parents, draft.end) if parent < draft.end - 1}
        assert len(runner_ups & set(parents)) <= 3
    assert any(parent >= draft.end for draft in drafts(simulation) for parent, _ in draft.branches)


def test_the_device_drafts_on_while_a_tree_is_verified() -> None:
    simulation = simulate(trace_of("+" * 40), SCENARIO, strategy_named("specedge-8"))
    flying, ahead = 0, 0
    for moment in simulation.timeline:
        flying += isinstance(moment.event, Draft) - isinstance(moment.event, Verdict)
        ahead += isinstance(moment.event, Drafted) and flying > 0
        assert flying <= 1
    assert ahead >= 16
    assert simulation.stats.round_trips < len(drafts(simulation)), "some trees were drafted before the verdict"


PEERS = st.integers(1, 32).map(lambda tokens: strategy_named(f"specedge-{tokens}"))
PLANNERS = st.builds(
    FixedPlanner, st.just(Mode.EXACT), st.integers(1, 8), st.integers(1, 4), st.integers(1, 24), st.sampled_from([0, 3])
)
SPROUTING = st.builds(BranchingPlanner, PLANNERS, st.integers(1, 5)).map(
    lambda planner: Strategy("sprouting", planner, Always)
)


@settings(max_examples=100)
@given(
    pattern=st.text("+-", min_size=1, max_size=40),
    foreseen=st.booleans(),
    ended=st.booleans(),
    strategy=PEERS | SPROUTING,
    rtt_ms=st.floats(0, 200),
    resets=st.lists(st.floats(0, 3).map(lambda moment: round(moment, 3)), max_size=3).map(sorted).map(tuple),
    rows=st.integers(0, 3),
)
def test_the_text_is_the_clouds_for_every_tree(
    pattern: str,
    foreseen: bool,
    ended: bool,
    strategy: Strategy,
    rtt_ms: float,
    resets: tuple[float, ...],
    rows: int,
) -> None:
    trace = trace_of(pattern, ended=ended)
    trace = trace if foreseen else unforeseen(trace)
    profile = Profile.fixed(rtt_ms).model_copy(update={"resets": ResetProfile(at_s=resets)})
    draft = replace(SCENARIO.draft, branches=rows)
    simulation = simulate(trace, replace(SCENARIO, profile=profile, draft=draft, warm_start=False), strategy)
    assert simulation.error is None
    assert simulation.token_ids == trace.token_ids
