"""The device's settings, as in `configs/edge.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chaperone_common.address import split_addresses
from chaperone_common.artefacts.folders import is_pair_name
from chaperone_common.artefacts.manifest import MANIFEST_NAME, load_manifest
from chaperone_common.errors import ConfigError, InvalidRequest
from chaperone_common.ranges import MAX_COUNT, RANGES, stop_problem, top_logprobs_problem
from chaperone_common.settings import FrozenModel, RelativePath, load_yaml
from chaperone_common.suggestion import cut, shown
from chaperone_common.types import Mode, OnDeviation

MAX_DEADLINE_MS = 86_400_000.0  # a day
MAX_THREADS = 1024


def cloud_share_problem(share: float | None, on_deviation: OnDeviation) -> str | None:
    """Return why a ceiling of the cloud's share cannot be kept; None if it can, or if there is none.

    With `retract` all tokens wait for the cloud, and those that it may not be asked about would never become final.
    """
    if share in (None, 1) or on_deviation is OnDeviation.KEEP:
        return None
    return f"{share} cannot be kept with on_deviation: retract; use keep, or 1 to switch the ceiling off"


def _in_range(name: str) -> AfterValidator:
    """Return a validator for the range of a generation parameter."""
    return AfterValidator(lambda value: _checked(value, RANGES[name].problem(value)))


def _as_stop_strings(value: Any) -> Any:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(text, str) for text in strings):
        _checked(value, f"{shown(value)} is neither a string nor a list of strings")
    return _checked(tuple(strings), stop_problem(strings))


def _as_addresses(value: Any) -> Any:
    listed = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(address, str) for address in listed):
        raise ValueError("this is neither an address nor a list of addresses; write HOST:PORT, in quotes")
    split_addresses(value)
    return tuple(value) if isinstance(value, list) else value


def _checked(value: Any, problem: str | None) -> Any:
    if problem is not None:
        raise PydanticCustomError("parameter", "{problem}", {"problem": problem})
    return value


Addresses = Annotated[str | tuple[str, ...], BeforeValidator(_as_addresses)]

# Types of generation parameters. They check the defaults in the settings, and the values of each request.
Temperature = Annotated[float, _in_range("temperature")]
TopP = Annotated[float, _in_range("top_p")]
TopK = Annotated[int, _in_range("top_k")]
MinP = Annotated[float, _in_range("min_p")]
Seed = Annotated[int, _in_range("seed")]
MaxNewTokens = Annotated[int, _in_range("max_new_tokens")]
TopLogprobs = Annotated[int, _in_range("top_logprobs")]
NumBeams = Annotated[int, _in_range("num_beams")]
NumReturnSequences = Annotated[int, _in_range("num_return_sequences")]
BeamWidth = Annotated[int, _in_range("beam_width")] | Literal["dynamic"]
BeamThreshold = Annotated[float, _in_range("beam_threshold")]
LengthPenalty = Annotated[float, _in_range("length_penalty")]
Stop = Annotated[tuple[str, ...], BeforeValidator(_as_stop_strings)]
Catch = Annotated[float, _in_range("catch")]
MaxDeviation = Annotated[float, _in_range("max_deviation")]
MaxCloudShare = Annotated[float, _in_range("max_cloud_share")]


class CloudSettings(FrozenModel):
    """The addresses of the cloud, the credentials for it, and the times to wait for it.

    `address` is one address, several in one text that commas separate, or a sequence of them.
    """

    address: Addresses = "127.0.0.1:50151"
    tls: bool | None = None
    ca_file: RelativePath | None = None
    cert_file: RelativePath | None = None
    key_file: RelativePath | None = None
    token_file: RelativePath | None = None
    insecure: bool = False
    connect_timeout_ms: float = Field(default=5_000.0, gt=0, le=MAX_DEADLINE_MS)
    open_deadline_ms: float = Field(default=300_000.0, gt=0, le=MAX_DEADLINE_MS)
    verification_deadline_ms: float = Field(default=60_000.0, gt=0, le=MAX_DEADLINE_MS)
    reconnect_timeout_ms: float = Field(default=30_000.0, ge=0, le=MAX_DEADLINE_MS)
    on_loss: Literal["default", "fail", "continue"] = "default"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses one by one. Each is of a server, and all servers serve the same model."""
        return split_addresses(self.address)


class DeviceSettings(FrozenModel):
    """The small model: its threads and execution providers, encodings of prompts, and a memory of corrections."""

    threads: int = Field(default=2, ge=1, le=MAX_THREADS)
    allow_spinning: bool = True
    providers: tuple[str, ...] = Field(default=("CPUExecutionProvider",), strict=False)
    conditioning: Literal["auto", "on", "off"] = "auto"
    encodings_mib: float = Field(default=32.0, ge=0, le=4096)
    adapt: bool = False


class GateSettings(FrozenModel):
    """The gate of mode `gated`: it decides which tokens need the cloud."""

    policy: Literal["budgeted", "threshold", "always", "never"] = "budgeted"
    file: Literal["auto"] | RelativePath | None = "auto"
    catch: Catch = 0.95
    max_deviation: MaxDeviation = 0.02
    on_deviation: OnDeviation = Field(default=OnDeviation.KEEP, strict=False)
    max_cloud_share: MaxCloudShare | None = None
    on_cloud_share: Literal["continue", "fail"] = "continue"
    audit_share: float = Field(default=1.0, ge=0.05, le=1)
    request_price_ms: float | None = Field(default=None, ge=0, le=MAX_DEADLINE_MS)
    risk: float = Field(default=0.1, ge=0, le=1)  # the policy `threshold` fires at this risk and above
    journal_file: RelativePath | None = None
    journal_mib: int = Field(default=8, ge=1, le=1024)

    @field_validator("max_cloud_share")
    @classmethod
    def _fits_on_deviation(cls, share: float | None, info: ValidationInfo) -> float | None:
        _checked(share, cloud_share_problem(share, info.data.get("on_deviation", OnDeviation.KEEP)))
        return share


class PlannerSettings(FrozenModel):
    """The planner: it decides when to draft, send and wait. Only the policy `fixed` uses the numbers."""

    policy: Literal["adaptive", "fixed"] = "adaptive"
    span_tokens: int = Field(default=16, ge=1)
    spans_in_flight: int = Field(default=2, ge=1)
    run_ahead_tokens: int = Field(default=64, ge=1)
    takeover_tokens: int = Field(default=0, ge=0, le=MAX_COUNT - 1)


class GenerationSettings(FrozenModel):
    """Defaults of the generation parameters; see `RequestParameters`."""

    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    seed: Seed | None = None
    max_new_tokens: MaxNewTokens = 256
    stop: Stop = ()
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0
    num_beams: NumBeams = 1
    num_return_sequences: NumReturnSequences = 1
    beam_width: BeamWidth = "dynamic"
    beam_threshold: BeamThreshold | None = None
    length_penalty: LengthPenalty = 1.0
    early_stopping: bool = False
    one_cache: bool = False

    @field_validator("top_logprobs")
    @classmethod
    def _fits_logprobs(cls, count: int, info: ValidationInfo) -> int:
        _checked(count, top_logprobs_problem(count, logprobs=bool(info.data.get("logprobs"))))
        return count


class EdgeConfig(FrozenModel):
    """All settings of the device. `configs/edge.yaml` explains each of them.

        config = EdgeConfig.load("edge.yaml")
        config = EdgeConfig(pair="tiny", mode="gated", cloud=CloudSettings(address="127.0.0.1:50151"))

    Raises ConfigError for an unknown setting or a value out of range.
    """

    pair: str = "default"
    mode: Mode = Field(default=Mode.EXACT, strict=False)
    closing_audit: bool = False
    cloud: CloudSettings = CloudSettings()
    device: DeviceSettings = DeviceSettings()
    gate: GateSettings = GateSettings()
    planner: PlannerSettings = PlannerSettings()
    generation: GenerationSettings = GenerationSettings()

    @field_validator("cloud", mode="before")
    @classmethod
    def _is_no_address(cls, value: Any) -> Any:
        text = f"{shown(value)} is an address, which belongs into cloud.address: CloudSettings(address={shown(value)})"
        return _checked(value, text if isinstance(value, str) else None)

    @classmethod
    def load(cls, path: Path | str) -> EdgeConfig:
        """Read a YAML file, or the packaged `edge.yaml` by its name; raises ConfigError with file, line and key.

        Paths in the file are relative to it.
        """
        return load_yaml(path, cls)


def refuse_arguments(kind: str, given: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for arguments that a client of this kind does not take, and name the ones that it does."""
    for name, value in given.items():
        if name in ("pair", "pair_or_path", "cloud", "address"):
            example = shown(value) if name.startswith("pair") else '"default"'
            remedy = f'use {kind}.from_pretrained({example}, cloud="HOST:PORT")'
        elif name in EdgeConfig.model_fields:
            remedy = f"use {kind}(EdgeConfig({name}=...))"
        else:
            remedy = f"give settings as {kind}(EdgeConfig(...)), and the parameters of a text to generate or stream"
        raise InvalidRequest(f"{cut(name)}: {kind} has no such argument; {remedy}")


def checked_config(config: EdgeConfig | None) -> EdgeConfig:
    """Return the settings of a client, the defaults for None; raises ConfigError for another object."""
    if config is not None and not isinstance(config, EdgeConfig):
        raise ConfigError(
            f"config: {shown(config)} is no EdgeConfig; use EdgeConfig.load(FILE), or make the client by "
            "from_config(FILE) or from_pretrained(NAME)"
        )
    return config or EdgeConfig()


def pretrained(
    pair_or_path: str | Path, cloud: str | Sequence[str] | None, config: EdgeConfig
) -> tuple[EdgeConfig, Path | None]:
    """Return the settings with this pair and this address, and the folder of the device's model if a path is given.

    A path names the folder of a pair, or of its device model. Raises ConfigError for neither a name nor such a path.
    """
    updates: dict[str, Any] = {}
    if cloud is not None:
        address = CloudSettings(address=cloud if isinstance(cloud, str) else tuple(cloud)).address
        updates["cloud"] = config.cloud.model_copy(update={"address": address})
    if isinstance(pair_or_path, str) and is_pair_name(pair_or_path):
        return config.model_copy(update={**updates, "pair": pair_or_path}), None
    path = Path(pair_or_path).expanduser()
    for folder in (path / "edge", path):
        if (folder / MANIFEST_NAME).is_file():
            pair = load_manifest(folder, role="edge").pair
            return config.model_copy(update={**updates, "pair": pair}), folder
    raise ConfigError(
        f"pair_or_path: {shown(str(pair_or_path))} is neither the name of a pair nor a folder with {MANIFEST_NAME}; "
        "give a name such as default, or the folder of a pair, such as models/default"
    )
