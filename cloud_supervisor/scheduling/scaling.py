"""The number of replicas that a service needs, by the time that requests wait for a model."""

from __future__ import annotations

_MOST_GROWTH = 2.0  # in one decision: a queue grows faster than its load
_IDLE_SHARE = 0.25  # of the target; between the two, nothing changes


def wanted_replicas(running: int, queue_ms: float, target_ms: float) -> float:
    """Return the number of replicas for a queue time of about `target_ms`; round it up.

    `queue_ms` is the mean over `running` replicas. One replica goes at a time, so that its sessions find a place.
    """
    if queue_ms > target_ms:
        return running * min(queue_ms / target_ms, _MOST_GROWTH)
    if queue_ms < _IDLE_SHARE * target_ms:
        return max(1, running - 1)
    return running
