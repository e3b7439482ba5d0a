"""Sizes and sampling parameters that the tests of target models share."""

from __future__ import annotations

from chaperone_common.types import SamplingParams

CONTEXT_TOKENS = 64
USED_IDS = 60  # every model under test knows at least these

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.9, seed=7)
TRUNCATED = SamplingParams(temperature=1.2, top_k=20, top_p=0.9, min_p=0.02, seed=2**63 + 5)
