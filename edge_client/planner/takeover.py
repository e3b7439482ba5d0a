"""The length of a takeover: the tokens that the cloud should write after an override.

Overrides come in clusters: right after one, the device is often wrong again. Each further override costs a round trip
and a verification. The cloud, which is active anyway, writes a token in `stream_ms`.
"""

from __future__ import annotations

from itertools import takewhile

from edge_client.planner.costs import Costs
from edge_client.planner.learning import OverrideClusters

# Chance of a further override below which the device writes, however fast the cloud is. The cloud's time has a cost,
# too (an assumption).
_LEAST_CHANCE = 0.25


def takeover_tokens(override_clusters: OverrideClusters, costs: Costs) -> int:
    """Return the number of tokens that the cloud should write after an override."""
    again_ms = costs.rtt_ms + costs.read_ms(1)

    def better_written(chance: float) -> bool:
        return chance >= _LEAST_CHANCE and costs.draft_ms + chance * again_ms > costs.stream_ms

    return sum(1 for _ in takewhile(better_written, override_clusters.chances()))
