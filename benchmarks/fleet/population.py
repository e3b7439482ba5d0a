"""The devices of a fleet, and the replica of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.model import Fleet


@dataclass(frozen=True, slots=True)
class Population:
    """Traits of devices by number; they depend on the seed, and not on the number of replicas."""

    rtts_ms: NDArray[np.float64]  # [devices]
    speeds: NDArray[np.float64]  # [devices]
    hashes: NDArray[np.uint64]  # [devices], of session ids

    @classmethod
    def draw(cls, fleet: Fleet, seed: int) -> Population:
        """Draw the devices of a fleet."""
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        return cls(
            rng.choice(np.array(fleet.rtts_ms), fleet.devices),
            fleet.draw_speeds(fleet.devices, rng),
            rng.integers(0, 2**64, fleet.devices, np.uint64),
        )

    def by_replica(self, replicas: int) -> list[NDArray[np.int64]]:
        """Return the devices of each replica; together they are all."""
        places = jump_hash(self.hashes, replicas)
        order = np.argsort(places, kind="stable")
        return np.split(order, np.searchsorted(places[order], np.arange(1, replicas)))


def jump_hash(hashes: NDArray[np.uint64], buckets: int) -> NDArray[np.int64]:
    """Return the bucket of each hash (Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014).

    Every bucket is as likely. Of n + 1 buckets, only the last one takes hashes from the first n.
    """
    state = hashes.copy()
    bucket = np.zeros(len(hashes), np.int64)
    following = np.zeros(len(hashes), np.int64)
    while (moving := np.flatnonzero(following < buckets)).size:
        bucket[moving] = following[moving]
        state[moving] = state[moving] * np.uint64(2862933555777941757) + np.uint64(1)
        draw = (state[moving] >> np.uint64(33)).astype(np.float64) + 1
        following[moving] = ((bucket[moving] + 1) * (2.0**31 / draw)).astype(np.int64)
    return bucket
