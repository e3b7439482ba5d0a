"""The length of a takeover: the cloud writes as long as another request would take longer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaperone_common.types import Mode
from edge_client.planner import AdaptivePlanner, CatchUp, Estimates, Send, Wait
from edge_client.planner.costs import Costs
from edge_client.planner.learning import OverrideClusters
from edge_client.planner.takeover import takeover_tokens
from tests.support.device.planner import PlannerHarness, known

SLOW_LINK = Costs(draft_ms=20.0, rtt_ms=600.0, read_base_ms=80.0, read_token_ms=0.0, stream_ms=80.0)


def clustered(*chances: float) -> OverrideClusters:
    """Return the clusters after a hundred overrides, with this share of further overrides at each distance."""
    override_clusters = OverrideClusters()
    for number in range(1, 101):
        for distance, chance in enumerate(chances, start=1):
            override_clusters.settled(distance, overridden=int(number * chance) > int((number - 1) * chance))
    return override_clusters


def test_without_samples_the_device_writes() -> None:
    assert takeover_tokens(OverrideClusters(), SLOW_LINK) == 0


def test_a_takeover_is_as_long_as_a_cluster_of_overrides() -> None:
    override_clusters = clustered(0.9, 0.7, 0.5, 0.02, 0.9)
    assert takeover_tokens(override_clusters, SLOW_LINK) == 3


@pytest.mark.parametrize(
    "costs",
    [
        Costs(draft_ms=20.0, rtt_ms=20.0, read_base_ms=310.0, read_token_ms=0.0, stream_ms=310.0),
        Costs(draft_ms=20.0, rtt_ms=0.0, read_base_ms=10.0, read_token_ms=0.0, stream_ms=80.0),
    ],
)
def test_no_takeover_where_a_request_is_as_cheap_as_a_token_of_the_cloud(costs: Costs) -> None:
    assert takeover_tokens(clustered(0.5, 0.5), costs) == 0


def test_a_device_that_is_mostly_right_writes_even_with_a_fast_cloud() -> None:
    assert takeover_tokens(clustered(0.1, 0.1), Costs(draft_ms=40.0, rtt_ms=600.0, stream_ms=5.0)) == 0


def test_old_samples_of_clusters_are_forgotten() -> None:
    override_clusters = clustered(0.9)
    assert takeover_tokens(override_clusters, SLOW_LINK) == 1
    for _ in range(400):
        override_clusters.unknown(1)
    assert takeover_tokens(override_clusters, SLOW_LINK) == 0


def asking(estimates: Estimates, limit: int = 200) -> PlannerHarness:
    for number in range(60):
        for distance in (1, 2):
            estimates.override_clusters.settled(distance, overridden=number % 10 < 6)
    return (
        PlannerHarness(estimates, limit=limit).drafted(0.01, fires=False).drafted(0.5).drafted(*[0.01] * 4, fires=False)
    )


def test_gated_sends_the_length_of_a_takeover_with_its_request() -> None:
    far = asking(known(rtt_ms=600, read_ms=80, token_ms=0, stream_ms=80)).decide(Mode.GATED)
    assert far.action == Send(2, 2)
    assert far.figures["takeover"] == 2
    near = asking(known(rtt_ms=5, read_ms=80, token_ms=0, stream_ms=80)).decide(Mode.GATED)
    assert near.action == Send(1, 0), "the cloud chooses one token, without a takeover"


@pytest.mark.parametrize(("left", "takeover"), [(None, 2), (8, 2), (2, 1), (1, 0), (0, 0)])
def test_a_ceiling_on_the_cloud_share_shortens_a_takeover(left: int | None, takeover: int) -> None:
    situation = asking(known(rtt_ms=600, read_ms=80, token_ms=0, stream_ms=80)).situation
    action = AdaptivePlanner(Mode.GATED).decide(replace(situation, cloud_tokens_left=left)).action
    assert isinstance(action, Send)
    assert action.continuation_tokens == takeover


def test_gated_reads_along_in_chunks_without_a_take_back() -> None:
    harness = PlannerHarness(known(rtt_ms=60, stream_ms=80)).taken_over(continuation_tokens=12)
    assert harness.decide(Mode.GATED).action == Wait()
    assert harness.written(8, each_ms=80).decide(Mode.GATED).action == CatchUp()
