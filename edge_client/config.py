"""The device's settings, as in `configs/edge.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from common.config import FrozenModel, load_yaml
from common.types import Mode


class CloudSettings(FrozenModel):
    """Where the cloud is, and how long to wait for it."""

    address: str = "127.0.0.1:50151"
    connect_timeout_ms: float = Field(default=5_000.0, gt=0)
    open_deadline_ms: float = Field(default=300_000.0, gt=0)
    verification_deadline_ms: float = Field(default=60_000.0, gt=0)
    on_loss: Literal["default", "fail", "continue"] = "default"


class DeviceSettings(FrozenModel):
    """How the small model runs."""

    threads: int = Field(default=2, ge=1)
    allow_spinning: bool = True
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


class GateSettings(FrozenModel):
    """Which tokens `gated` asks the cloud about."""

    policy: Literal["threshold", "always", "never"] = "threshold"
    risk: float = Field(default=0.02, ge=0, le=1)


class PlannerSettings(FrozenModel):
    """When spans are sent."""

    span_tokens: int = Field(default=16, ge=1)
    spans_in_flight: int = Field(default=2, ge=1)
    run_ahead_tokens: int = Field(default=64, ge=1)
    takeover_tokens: int = Field(default=0, ge=0)


class GenerationSettings(FrozenModel):
    """Defaults of the generation parameters."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()


class EdgeConfig(FrozenModel):
    """All settings of the device; see `configs/edge.yaml` for what they mean."""

    pair: str = "default"
    mode: Mode = Mode.EXACT
    closing_audit: bool = False
    cloud: CloudSettings = CloudSettings()
    device: DeviceSettings = DeviceSettings()
    gate: GateSettings = GateSettings()
    planner: PlannerSettings = PlannerSettings()
    generation: GenerationSettings = GenerationSettings()

    @classmethod
    def load(cls, path: Path | str) -> EdgeConfig:
        """Read a YAML file; raises ConfigError with file, line and key."""
        return load_yaml(path, cls)
