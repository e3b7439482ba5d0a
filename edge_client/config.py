"""The device's settings, as in `configs/edge.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from chaperone_common.address import check_address
from chaperone_common.settings import FrozenModel, PathBesideFile, load_yaml
from chaperone_common.types import MAX_COUNT, MAX_SEED, Mode, OnDeviation

MAX_DEADLINE_MS = 86_400_000.0  # a day
MAX_THREADS = 1024


class CloudSettings(FrozenModel):
    """Where the cloud is, and how long to wait for it."""

    address: str = "127.0.0.1:50151"
    connect_timeout_ms: float = Field(default=5_000.0, gt=0, le=MAX_DEADLINE_MS)
    open_deadline_ms: float = Field(default=300_000.0, gt=0, le=MAX_DEADLINE_MS)
    verification_deadline_ms: float = Field(default=60_000.0, gt=0, le=MAX_DEADLINE_MS)
    reconnect_timeout_ms: float = Field(default=30_000.0, ge=0, le=MAX_DEADLINE_MS)
    on_loss: Literal["default", "fail", "continue"] = "default"

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        check_address(address)
        return address


class DeviceSettings(FrozenModel):
    """How the small model runs."""

    threads: int = Field(default=2, ge=1, le=MAX_THREADS)
    allow_spinning: bool = True
    providers: tuple[str, ...] = Field(default=("CPUExecutionProvider",), strict=False)


class GateSettings(FrozenModel):
    """Which tokens `gated` asks the cloud about; `risk` is that of the policy `threshold`."""

    policy: Literal["budgeted", "threshold", "always", "never"] = "budgeted"
    file: Literal["auto"] | PathBesideFile | None = "auto"
    catch: float = Field(default=0.95, ge=0, le=1)
    max_deviation: float = Field(default=0.02, ge=0, le=1)
    on_deviation: OnDeviation = Field(default=OnDeviation.KEEP, strict=False)
    audit_share: float = Field(default=1.0, ge=0.05, le=1)
    risk: float = Field(default=0.1, ge=0, le=1)


class PlannerSettings(FrozenModel):
    """What decides when to draft, send and wait; the numbers are those of `fixed`."""

    policy: Literal["adaptive", "fixed"] = "adaptive"
    span_tokens: int = Field(default=16, ge=1)
    spans_in_flight: int = Field(default=2, ge=1)
    run_ahead_tokens: int = Field(default=64, ge=1)
    takeover_tokens: int = Field(default=0, ge=0, le=MAX_COUNT - 1)


class GenerationSettings(FrozenModel):
    """Defaults of the generation parameters."""

    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=MAX_COUNT)
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    max_new_tokens: int = Field(default=256, ge=1, le=MAX_COUNT)
    stop: tuple[str, ...] = Field(default=(), strict=False)


class EdgeConfig(FrozenModel):
    """All settings of the device; see `configs/edge.yaml` for what they mean.

    Raises ConfigError for a value that cannot be, made in Python as read by `load`.
    """

    pair: str = "default"
    mode: Mode = Field(default=Mode.EXACT, strict=False)
    closing_audit: bool = False
    cloud: CloudSettings = CloudSettings()
    device: DeviceSettings = DeviceSettings()
    gate: GateSettings = GateSettings()
    planner: PlannerSettings = PlannerSettings()
    generation: GenerationSettings = GenerationSettings()

    @classmethod
    def load(cls, path: Path | str) -> EdgeConfig:
        """Read a YAML file, such as `configs/edge.yaml`, which comes along; raises ConfigError with file, line and key.

        Paths in the file are relative to it.
        """
        return load_yaml(path, cls)
