"""Only what stays on this machine may go without TLS."""

from __future__ import annotations

import pytest

from common.address import is_loopback


@pytest.mark.parametrize(
    "address", ["127.0.0.1:50151", "127.8.9.10:0", "localhost:1", "[::1]:50151", "unix:/run/c.sock"]
)
def test_loopback(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50151",
        "[::]:50151",
        "127.0.0.1.example.com:1",
        "localhost.example.com:1",
        "10.0.0.1:1",
        "dns:127.0.0.1:1",
        "",
    ],
)
def test_not_loopback(address: str) -> None:
    assert not is_loopback(address)
