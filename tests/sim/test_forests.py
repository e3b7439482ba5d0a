"""The width of forests in virtual time: engine, supervisor and link are real, models and their costs are simulated.

Beam search has the same texts for all widths, so that only the times differ. A client learns from its first text, which
is not counted.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from benchmarks.simulation import virtual_time
from benchmarks.simulation.link import SimulatedCloud
from benchmarks.simulation.virtual_time import LoopClock
from chaperone_common.beams.frames import BeamSettings
from chaperone_common.session import Committed, Finished
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.supervisor import Supervisor
from edge_client.beams.shape import Limits
from link_emulator.model import Link
from link_emulator.profile import Profile
from tests.support.cloud.scoring_queue import ScoringQueue, beam_capabilities
from tests.support.device.beam_engine import BeamClient, events_of
from tests.support.fakes.beam_model import FakeBeamModel
from tests.support.fakes.target import FakeTarget

TEXTS, TOKENS = 10, 48


class Costs(NamedTuple):
    """Milliseconds of a forward of the device and of another row, of a forward of the cloud and of each text."""

    draft: float
    row: float
    read: float
    text: float


SMALL_MACHINES, FAST_DEVICE = Costs(25, 8, 120, 10), Costs(8, 1.5, 60, 1)


class Written(NamedTuple):
    elapsed_ms: float
    texts: list[list[int]]


def written(num_beams: int, width: int | None, costs: Costs, rtt_ms: float) -> Written:
    """Return the texts of one client, and the time of all but the first."""
    client = BeamClient(
        BeamSettings(num_beams),
        width=width,
        limits=Limits(8, 8, 256),
        tokens=TOKENS,
        model=lambda: FakeBeamModel(FakeTarget(seed=1, disturbance=0.03), forward_ms=costs.draft, row_ms=costs.row),
    )

    async def play() -> Written:
        target, clock = FakeTarget(seed=1), LoopClock()
        queue = ScoringQueue(target, forward_ms=costs.read, text_ms=costs.text)
        supervisor = Supervisor(queue, beam_capabilities(target), LimitsConfig(), clock)
        cloud = SimulatedCloud(supervisor, Link(Profile.fixed(rtt_ms)))
        elapsed_ms, texts = 0.0, list[list[int]]()
        for number in range(TEXTS):
            engine = client.engine(cloud=cloud, clock=clock, prompt=(5, 6, 7 + number), session=f"s{number}")
            events = await events_of(engine)
            ending = events[-1]
            assert isinstance(ending, Finished), ending
            elapsed_ms += ending.stats.total_ms if number else 0.0
            texts.append([event.token_id for event in events if isinstance(event, Committed)])
        await cloud.close()
        return Written(elapsed_ms, texts)

    return virtual_time.run(play())


@pytest.mark.parametrize(
    ("costs", "num_beams"), [(SMALL_MACHINES, 3), (FAST_DEVICE, 2)], ids=["small machines", "fast device"]
)
def test_the_dynamic_width_is_about_as_fast_as_the_best_fixed_one(costs: Costs, num_beams: int) -> None:
    shares = []
    for rtt_ms in (0.0, 50.0, 200.0):
        fixed = [written(num_beams, width, costs, rtt_ms) for width in (1, 2, 3, 4)]
        dynamic = written(num_beams, None, costs, rtt_ms)
        assert all(one.texts == dynamic.texts for one in fixed)
        shares.append(min(one.elapsed_ms for one in fixed) / dynamic.elapsed_ms)
    assert min(shares) > 0.92
    assert sum(shares) / len(shares) > 0.94


def test_forests_are_faster_than_the_cloud_alone_where_that_is_possible() -> None:
    """No forest narrower than the beams can stand, so that the cloud draws alone with width 1."""
    assert written(2, None, FAST_DEVICE, 0.0).elapsed_ms < 0.6 * written(2, 1, FAST_DEVICE, 0.0).elapsed_ms
