"""Plan of a run: generations, their order and their cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.kit.digests import digest_of_source
from benchmarks.kit.prompts import Prompt
from benchmarks.kit.work_file import Key
from benchmarks.measured.assisted import ASSISTED
from benchmarks.measured.llama_server import LLAMA_SERVER, LlamaCpp
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from link_emulator.profile import Profile

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = (ASSISTED, LLAMA_SERVER)  # strategies of other software
MEASURING = "benchmarks.measured.generations"  # makes the generations; other modules summarise them


@dataclass(frozen=True, slots=True)
class Plan:
    """The generations of a run and their conditions."""

    prompts: tuple[Prompt, ...]
    strategies: Mapping[str, tuple[str, ...]]  # by class of prompts, since a peer's best span depends on it
    profile: Profile
    pair: str
    dtype: str  # of the large model's computation
    max_new_tokens: int
    temperature: float
    repeats: int
    seed: int
    cold: bool
    llama: LlamaCpp | None = None  # of the strategy `llama-server`

    @property
    def names(self) -> tuple[str, ...]:
        """All strategies."""
        return tuple(dict.fromkeys(name for names in self.strategies.values() for name in names))

    def keys(self) -> list[Key]:
        """Return all generations in the order in which they are made: interleaved, and rotating."""
        return [
            (prompt.id, name, repeat)
            for repeat in range(self.repeats)
            for index, prompt in enumerate(self.prompts)
            for name in rotated(self.strategies[prompt.category], index + repeat)
        ]

    def identity(self, measured: dict[str, Any]) -> dict[str, Any]:
        """Return everything that a generation's measurement depends on; see `benchmarks.kit.work_file`."""
        manifests = [load_manifest(pair_folder(self.pair, role), role=role) for role in ("edge", "cloud")]
        return {
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "strategies": self.strategies,
            "link": self.profile.model_dump(mode="json"),
            "dtype": self.dtype,
            "models": [manifest.model_dump(mode="json") for manifest in manifests],
            "llama": self.llama.described() if self.llama else None,
            "asked": [self.max_new_tokens, self.temperature, self.seed, self.cold],
            "source": digest_of_source(ROOT, MEASURING),
            "versions": measured["versions"],
            "machine": measured["machine"],
        }


def with_dtype(plan: Plan) -> Plan:
    """Return the plan with the dtype that `auto` means on this machine.

    A child process imports torch to find out, so that this one does not. Raises ModelMissing, with the remedy.
    """
    if plan.dtype != "auto":
        return plan
    load_manifest(pair_folder(plan.pair, "cloud"), role="cloud")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return replace(plan, dtype=pool.submit(_default_dtype, plan.pair).result())


def _default_dtype(pair: str) -> str:
    from cloud_supervisor.model.torch_model import default_dtype

    return default_dtype(pair_folder(pair, "cloud"))


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of both ends; the same one twice on a machine with a single core."""

    device: int
    cloud: int
    every: tuple[int, ...]

    @classmethod
    def allowed(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1 % len(cores)], tuple(cores))


def rotated(names: Sequence[str], turns: int) -> list[str]:
    """Return the names in the same order with another beginning each time, so that none is always first."""
    shift = turns % len(names)
    return [*names[shift:], *names[:shift]]
