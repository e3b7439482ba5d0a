"""Batches of prompts, and what each is asked with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from training.answers.sampling import Sampling
from training.prompt import Prompt

_DIGEST = 12  # hexadecimal digits


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are answered together."""

    number: int
    prompts: tuple[Prompt, ...]
    sampling: Sampling

    def file_name(self, settings: dict[str, object]) -> str:
        """Return a name that changes with everything that its answers depend on."""
        asked = {"prompts": [asdict(prompt) for prompt in self.prompts], "sampling": asdict(self.sampling)}
        digest = hashlib.sha256(json.dumps(asked | settings, sort_keys=True).encode()).hexdigest()
        return f"{self.number:04}-{digest[:_DIGEST]}.npz"


def batches_of(
    prompts: Sequence[Prompt], length: Callable[[Prompt], int], *, size: int, samplings: Sequence[Sampling], seed: int
) -> list[Batch]:
    """Return batches in random order, so that those that are answered first are a fair share of all.

    Prompts of about one length share a batch: short ones are padded to the longest. Few prompts make smaller batches,
    so that each sampling has one.
    """
    size = min(size, math.ceil(len(prompts) / len(samplings)))
    ordered = sorted(prompts, key=lambda prompt: (length(prompt), prompt.id))
    groups = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    order = np.random.default_rng(seed).permutation(len(groups))
    return [
        Batch(number, groups[group], samplings[number % len(samplings)].with_seed(seed + number))
        for number, group in enumerate(order)
    ]
