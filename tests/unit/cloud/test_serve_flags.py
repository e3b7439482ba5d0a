"""Flags of `serve` override settings at any depth, and errors name the flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from chaperone_common.errors import ConfigError
from chaperone_common.settings import FrozenModel, load_yaml
from cloud_supervisor.cli.serve import overridden
from cloud_supervisor.config import CloudConfig, QuotasConfig, TenantQuota


class Inner(FrozenModel):
    cert_file: Path
    key_file: Path | None = None


class Outer(FrozenModel):
    threads: int = Field(default=1, ge=1)
    tls: Inner | None = None
    names: tuple[str, ...] = ("a",)


SETTINGS = {"threads": "threads", "tls_cert": "tls.cert_file", "tls_key": "tls.key_file"}


@pytest.mark.parametrize(
    ("config", "flags", "expected"),
    [
        (Outer(), {}, Outer()),
        (Outer(), {"threads": None, "other": 5}, Outer()),
        (Outer(), {"threads": 3}, Outer(threads=3)),
        (Outer(), {"tls_cert": Path("a")}, Outer(tls=Inner(cert_file=Path("a")))),
        (
            Outer(tls=Inner(cert_file=Path("a")), names=("b",)),
            {"tls_key": Path("c")},
            Outer(tls=Inner(cert_file=Path("a"), key_file=Path("c")), names=("b",)),
        ),
    ],
)
def test_only_given_flags_change_something(config: Outer, flags: dict[str, Any], expected: Outer) -> None:
    assert overridden(config, flags, SETTINGS) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"threads": 0}, "--threads: 0: Input should be greater than or equal to 1"),
        ({"tls_cert": 5}, "--tls-cert: 5: Input should be an instance of Path"),
        ({"tls_key": Path("k")}, "tls.cert_file: Field required"),
    ],
)
def test_a_wrong_value_names_its_flag(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(Outer(), flags, SETTINGS)
    assert caught.value.message.startswith(message)


def test_what_a_tenant_does_not_set_stays_that_of_default() -> None:
    quotas = QuotasConfig(default=TenantQuota(max_kv_tokens=5000), tenants={"acme": TenantQuota(max_sessions=3)})
    config = overridden(CloudConfig(quotas=quotas), {"threads": 2})
    assert config.threads == 2
    assert config.quotas.of("acme") == TenantQuota(max_sessions=3, max_kv_tokens=5000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair: tiny\ntls:\n  cert_file: c.pem\n", "2: tls.key_file: missing; a certificate needs its key"),
        ("tls: {client_ca_file: c.pem}\n", "1: tls.client_ca_file: needs tls.cert_file and tls.key_file as well"),
        (
            "pair: tiny\nlimits:\n  step_tokens: 100\n",
            "3: limits.step_tokens: 100 with max_span_tokens 256; it must be at least 257",
        ),
        ("device: GPU 0\n", "1: device: 'GPU 0': it is no device of torch; write cpu, cuda or cuda:0"),
    ],
)
def test_a_mistake_in_a_file_names_its_field_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, CloudConfig)
    assert caught.value.message == f"{path}:{message}"


def test_a_flag_without_its_other_half_names_the_missing_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(CloudConfig(), {"tls_cert": Path("c.pem")}, SETTINGS)
    assert caught.value.message == "tls.key_file: missing; a certificate needs its key"
