"""Logits to choose from, and the expected choice, computed the long way."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from chaperone_common.ranges import MAX_SEED
from chaperone_common.sampling import noise, warp
from chaperone_common.types import SamplingParams

Logits = NDArray[np.float32]
Float64s = NDArray[np.float64]

SEEDS = st.one_of(st.integers(0, MAX_SEED), st.sampled_from([0, 2**53 + 1, 2**63 - 1, 2**63, MAX_SEED]))
POSITIONS = st.integers(0, 2**32 - 1)
FILTERS = list(itertools.product([0, 1, 3, 700, 10**6], [1.0, 0.9, 0.3, 1e-6], [0.0, 0.05, 1.0]))
EXAMPLE = np.array([2.0, 1.5, 1.2, 0.7, 0.3, 0.0, -0.4, -1.0, -1.5, -3.0], np.float32)


def scores(logits: Logits, params: SamplingParams, position: int) -> Float64s:
    """Return the Gumbel-max scores before truncation, in float64."""
    scaled = logits.astype(np.float64) / params.temperature
    return np.asarray(scaled - np.log(-np.log(noise(params.seed, position, len(logits)))), np.float64)


def brute_choice(logits: Logits, params: SamplingParams, position: int) -> int:
    p = warp(logits, params)
    support = np.flatnonzero(p)
    u = noise(params.seed, position, len(p))[support]
    return int(support[np.argmax(np.log(p[support]) - np.log(-np.log(u)))])


def make_logits(shape: str, size: int, seed: int) -> Logits:
    rng = np.random.default_rng(seed)
    match shape:
        case "flat":
            values = 1e-3 * rng.standard_normal(size)
        case "normal":
            values = 2.5 * rng.standard_normal(size)
        case "peaked":
            values = 3.0 * rng.standard_normal(size) + 14.0 * (np.arange(size) == size // 2)
        case "tail":  # one likely token, and a mass of others just below the first cut of the pool
            values = -9.8 + 0.3 * rng.standard_normal(size) + 9.8 * (np.arange(size) == size // 2)
        case "tied":
            values = rng.integers(-2, 3, size).astype(np.float64)
        case _:
            raise ValueError(shape)
    return values.astype(np.float32)
