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
from benchmarks.strategies.other_pairs import Asked, SettingOfEncodings
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, file_sha256, load_manifest
from edge_client.config import GateSettings
from edge_client.gate.gating import load_gate, packaged_gate
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
    conditioning: SettingOfEncodings = "auto"  # of all devices
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

    def devices(self) -> dict[str, ModelManifest]:
        """Return the device's model of each pair that a strategy uses, and of the run's own."""
        pairs = dict.fromkeys([self.pair, *(Asked.of(name, self.pair).pair for name in self.names)])
        return {pair: load_manifest(pair_folder(pair, "edge"), role="edge") for pair in pairs}

    def described_devices(self) -> dict[str, dict[str, Any]]:
        """Return the device's models as a result names them."""
        return {
            pair: {
                "model": manifest.model,
                "digest": manifest.digest,
                "projector": manifest.projector.digest if manifest.projector is not None else None,
                "calibrated_gate": load_gate(GateSettings(), manifest) is not None,
            }
            for pair, manifest in self.devices().items()
        }

    def identity(self, measured: dict[str, Any]) -> dict[str, Any]:
        """Return everything that a generation's measurement depends on; see `benchmarks.kit.work_file`."""
        devices = self.devices()
        gates = {pair: packaged_gate(pair) for pair in devices}
        return {
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "strategies": self.strategies,
            "link": self.profile.model_dump(mode="json"),
            "dtype": self.dtype,
            "devices": {pair: manifest.model_dump(mode="json") for pair, manifest in devices.items()},
            "gates": {pair: file_sha256(path) for pair, path in gates.items() if path.is_file()},
            "cloud": load_manifest(pair_folder(self.pair, "cloud"), role="cloud").model_dump(mode="json"),
            "llama": self.llama.described() if self.llama else None,
            "asked": [self.max_new_tokens, self.temperature, self.seed, self.cold, self.conditioning],
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
