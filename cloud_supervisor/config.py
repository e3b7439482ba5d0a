"""The cloud service's settings, as in `configs/cloud.yaml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from chaperone_common.address import check_address
from chaperone_common.artefacts.folders import is_pair_name
from chaperone_common.settings import FrozenModel


def check_listen(address: str) -> str:
    """Return the address; raise ValueError unless it is `HOST:PORT` or `unix:PATH`."""
    check_address(address, any_port=True)
    return address


def check_pair_name(name: str) -> str:
    """Return the name of a pair; raises ValueError for a malformed name, such as a path."""
    if not is_pair_name(name):
        raise ValueError("it is not a name of lower-case letters, digits, '-' and '_'; `models list` shows all")
    return name


MAX_THREADS = 1024  # torch would start any number, and each thread costs memory


class LimitsConfig(FrozenModel):
    """The limits of the cloud, for all devices together and for each request."""

    max_sessions: int = Field(default=256, ge=1)
    max_queue: int = Field(default=256, ge=1)
    max_frames_waiting: int = Field(default=64, ge=1)
    max_span_tokens: int = Field(default=256, ge=1)
    max_message_kib: int = Field(default=1024, ge=1)
    prefill_chunk_tokens: int = Field(default=256, ge=1)
    open_timeout_s: float = Field(default=30.0, gt=0)
    idle_timeout_s: float = Field(default=600.0, gt=0)
    reconnect_grace_s: float = Field(default=30.0, ge=0)

    @property
    def max_streams(self) -> int:
        """Calls of any kind at once: sessions, streams that are refused or superseded, and health checks."""
        return 4 * self.max_sessions + 16


class CloudConfig(FrozenModel):
    """All settings of `chaperone-cloud serve`; `configs/cloud.yaml` explains them."""

    listen: Annotated[str, AfterValidator(check_listen)] = "127.0.0.1:50151"
    pair: Annotated[str, AfterValidator(check_pair_name)] = "default"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    kv_budget_mib: float = Field(default=2048.0, gt=0)
    grace_seconds: float = Field(default=5.0, ge=0)
    limits: LimitsConfig = LimitsConfig()
