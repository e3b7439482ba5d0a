"""What a run measures, in which order, and on which cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import Prompt
from benchmarks.work_file import Key, digest_of_source
from common.config import load_manifest, pair_folder
from link_emulator.profile import Profile

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    prompts: tuple[Prompt, ...]
    strategies: tuple[str, ...]
    profile: Profile
    pair: str
    max_new_tokens: int
    temperature: float
    repeats: int
    seed: int
    cold: bool

    def keys(self) -> list[Key]:
        """Every generation, in the order in which they are made: interleaved, and rotating."""
        return [
            (prompt.id, name, repeat)
            for repeat in range(self.repeats)
            for index, prompt in enumerate(self.prompts)
            for name in rotated(self.strategies, index + repeat)
        ]

    def identity(self, measured: dict[str, Any]) -> dict[str, Any]:
        """All that a generation's measurement depends on; see `benchmarks.work_file`."""
        manifests = [load_manifest(pair_folder(self.pair, role), role=role) for role in ("edge", "cloud")]
        return {
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "strategies": self.strategies,
            "link": self.profile.model_dump(mode="json"),
            "models": [manifest.model_dump(mode="json") for manifest in manifests],
            "asked": [self.max_new_tokens, self.temperature, self.seed, self.cold],
            "source": digest_of_source(ROOT),
            "versions": measured["versions"],
            "machine": measured["machine"],
        }


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the two ends run; the same core for both where there is but one."""

    device: int
    cloud: int
    every: tuple[int, ...]

    @classmethod
    def allowed(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1 % len(cores)], tuple(cores))


def rotated(names: Sequence[str], turns: int) -> list[str]:
    """The same order, begun somewhere else each time, so that none is always first."""
    shift = turns % len(names)
    return [*names[shift:], *names[:shift]]
