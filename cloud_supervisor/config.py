"""The cloud service's settings, as in `configs/cloud.yaml`."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from chaperone_common.address import check_address, host_and_port
from chaperone_common.artefacts.folders import is_pair_name
from chaperone_common.ranges import MAX_BEAMS
from chaperone_common.settings import FrozenModel, RelativePath
from cloud_supervisor.caller import check_tenant


def check_listen(address: str) -> str:
    """Return the address; raise ValueError unless it is `HOST:PORT` or `unix:PATH`."""
    check_address(address, any_port=True)
    return address


def check_metrics(address: str) -> str:
    """Return the address; raise ValueError unless it is `HOST:PORT`."""
    host_and_port(address, any_port=True)
    return address


def check_pair_name(name: str) -> str:
    """Return the name of a pair; raises ValueError for a malformed name, such as a path."""
    if not is_pair_name(name):
        raise ValueError("it is not a name of lower-case letters, digits, '-' and '_'; `models list` shows all")
    return name


def check_device_name(name: str) -> str:
    """Return the name of a device; raises ValueError unless it is a kind, such as `cuda`, or `KIND:NUMBER`."""
    if not re.fullmatch(r"[a-z]+(:[0-9]{1,3})?", name, re.ASCII):
        raise ValueError("it is no device of torch; write cpu, cuda or cuda:0")
    return name


MAX_REPLICAS = 1000
MAX_THREADS = 1024  # torch would start any number, and each thread costs memory


class LimitsConfig(FrozenModel):
    """The limits of the cloud, for all devices together and for each stream."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_sessions: int = Field(default=256, ge=1)
    max_opening: int = Field(default=256, ge=1)
    max_queue: int = Field(default=256, ge=1)
    max_frames_waiting: int = Field(default=64, ge=1)
    max_span_tokens: int = Field(default=256, ge=1)
    max_message_kib: int = Field(default=1024, ge=1)
    step_tokens: int = Field(default=320, ge=1)
    step_requests: int = Field(default=256, ge=1)
    prefill_chunk_tokens: int = Field(default=64, ge=1)
    prefill_step_ms: float = Field(default=500.0, gt=0)
    kv_overcommit: float = Field(default=2.0, ge=1)
    open_timeout_s: float = Field(default=10.0, gt=0)
    idle_timeout_s: float = Field(default=600.0, gt=0)
    write_timeout_s: float = Field(default=30.0, gt=0)
    max_refusal_delay_s: float = Field(default=4.0, ge=0)
    max_stream_s: float = Field(default=3_600.0, gt=0)
    reconnect_grace_s: float = Field(default=30.0, ge=0)
    max_kept_texts: int = Field(default=1024, ge=0)
    max_kept_tokens: int = Field(default=1_000_000, ge=0)
    max_encoded_tokens: int = Field(default=8192, ge=0)
    max_beams: int = Field(default=MAX_BEAMS, ge=0, le=MAX_BEAMS)
    max_transfers: int = Field(default=16, ge=0)

    @model_validator(mode="after")
    def _fits_a_step(self) -> Self:
        for name, least in (
            ("prefill_chunk_tokens", self.prefill_chunk_tokens),
            ("max_span_tokens", self.max_span_tokens + 1),  # and the token that the branches follow
        ):
            if self.step_tokens < least:
                raise PydanticCustomError(
                    "field",
                    "step_tokens: {step} with {name} {value}; it must be at least {least}",
                    {"step": self.step_tokens, "name": name, "value": getattr(self, name), "least": least},
                )
        return self

    @property
    def max_streams(self) -> int:
        """Streams at once: sessions, those without an Open, and those that are being refused or superseded."""
        return 2 * (self.max_sessions + self.max_opening) + 16


class TenantQuota(FrozenModel):
    """The most that one tenant may use. None: as much as the cloud has."""

    max_sessions: int | None = Field(default=None, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_kv_tokens: int | None = Field(default=None, ge=1)
    streams_per_minute: int = Field(default=6_000, ge=1)
    positions_per_minute: int = Field(default=1_000_000, ge=1)
    max_transfers: int | None = Field(default=4, ge=1)
    transfer_mib_per_minute: int = Field(default=8_192, ge=1)


class QuotasConfig(FrozenModel):
    """The quotas of all tenants: `default`, and those that differ by name."""

    default: TenantQuota = TenantQuota()
    tenants: dict[Annotated[str, AfterValidator(check_tenant)], TenantQuota] = Field(default_factory=dict)

    def of(self, tenant: str) -> TenantQuota:
        """Return the quota of a tenant; what it does not set is that of `default`."""
        own = self.tenants.get(tenant, self.default)
        return self.default.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


class TlsConfig(FrozenModel):
    """The certificate of the server, and the authority that signs those of devices."""

    cert_file: RelativePath | None = None
    key_file: RelativePath | None = None
    client_ca_file: RelativePath | None = None


class JwtConfig(FrozenModel):
    """Tokens of an identity provider. Only signatures by a private key are accepted."""

    issuer: str
    audience: str
    jwks_file: RelativePath
    algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = Field(
        default=("RS256", "ES256", "EdDSA"), strict=False, min_length=1
    )
    tenant_claim: str = Field(default="tenant", min_length=1)


class LogsConfig(FrozenModel):
    """The log on standard error."""

    format: Literal["console", "json"] = "console"


class TracingConfig(FrozenModel):
    """OpenTelemetry: where spans are sent, as `http://HOST:PORT/v1/traces`. None sends none."""

    otlp_endpoint: str | None = None


class RayConfig(FrozenModel):
    """Replicas on Ray Serve."""

    model_config = ConfigDict(allow_inf_nan=False)

    replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    max_replicas: int | None = Field(default=None, ge=1, le=MAX_REPLICAS)
    target_queue_ms: float = Field(default=100.0, gt=0)
    cluster: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise PydanticCustomError(
                "replicas",
                "max_replicas: {most} is less than replicas {least}; raise it",
                {"most": self.max_replicas, "least": self.replicas},
            )
        return self

    @property
    def most_replicas(self) -> int:
        """The most replicas at once."""
        return self.max_replicas or self.replicas


class CloudConfig(FrozenModel):
    """All settings of `chaperone-cloud serve`; `configs/cloud.yaml` explains them."""

    model_config = ConfigDict(allow_inf_nan=False)

    engine: Literal["grpc", "ray"] = "grpc"
    ray: RayConfig = RayConfig()
    listen: Annotated[str, AfterValidator(check_listen)] = "127.0.0.1:50151"
    tls: TlsConfig = TlsConfig()
    tokens_file: RelativePath | None = None
    jwt: JwtConfig | None = None
    insecure: bool = False
    pair: Annotated[str, AfterValidator(check_pair_name)] = "default"
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    device: Annotated[str, AfterValidator(check_device_name)] = "cpu"
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    kv_budget_mib: float = Field(default=2048.0, gt=0)
    kv_sharing: bool = True
    metrics: Annotated[str, AfterValidator(check_metrics)] | None = None
    logs: LogsConfig = LogsConfig()
    tracing: TracingConfig = TracingConfig()
    lame_duck_seconds: float = Field(default=0.0, ge=0)
    grace_seconds: float = Field(default=30.0, ge=0)
    limits: LimitsConfig = LimitsConfig()
    quotas: QuotasConfig = QuotasConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        tls = self.tls
        if (tls.cert_file is None) != (tls.key_file is None):
            missing = "key_file" if tls.key_file is None else "cert_file"
            raise PydanticCustomError(
                "field", "tls.{missing}: missing; a certificate needs its key", {"missing": missing}
            )
        if tls.client_ca_file is not None and tls.cert_file is None:
            raise PydanticCustomError("field", "tls.client_ca_file: needs tls.cert_file and tls.key_file as well")
        return self

    @property
    def secure(self) -> bool:
        """The port speaks TLS."""
        return self.tls.cert_file is not None
