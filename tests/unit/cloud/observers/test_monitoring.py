"""Health and readiness over HTTP: bounded in size, time and connections."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.error import HTTPError

import pytest

from chaperone_common.errors import ConfigError
from cloud_supervisor.hosting.monitoring import MAX_CONNECTIONS, MAX_HEAD_BYTES, Monitoring
from cloud_supervisor.observers.prometheus import PrometheusObserver
from tests.support.cloud.metrics import Samples, fetch
from tests.support.waiting import PATIENCE_S


@contextmanager
def monitoring(
    readiness: Callable[[], str] = lambda: "ready", address: str = "127.0.0.1:0", request_s: float = PATIENCE_S
) -> Iterator[str]:
    server = Monitoring(address, PrometheusObserver().application(), readiness, request_s=request_s)
    server.start()
    try:
        yield server.address
    finally:
        server.close()


def raw(address: str, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def test_metrics_and_health() -> None:
    with monitoring() as address:
        assert Samples(fetch(address, "/metrics"))("chaperone_ready") == 0
        assert fetch(address, "/healthz") == "alive\n"


@pytest.mark.parametrize("word", ["ready", "loading", "full", "draining", "stopping"])
def test_readiness_is_a_word_and_a_status(word: str) -> None:
    with monitoring(lambda: word) as address:
        if word == "ready":
            assert fetch(address, "/readyz") == "ready\n"
            return
        with pytest.raises(HTTPError) as caught:
            fetch(address, "/readyz")
        with caught.value as answer:
            assert (answer.code, answer.read()) == (503, f"{word}\n".encode())


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /../etc/passwd HTTP/1.1", b"404"),
        (b"GET /metrics/ HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"HEAD /healthz HTTP/1.1", b"200"),
        (b"nonsense", b"400"),
    ],
)
def test_other_requests_are_refused(request_line: bytes, status: bytes) -> None:
    with monitoring() as address:
        answer = raw(address, request_line + b"\r\nHost: x\r\n\r\n")
        assert status in answer.split(b"\r\n")[0]
        assert b"Directory listing" not in answer


def test_a_long_head_is_refused() -> None:
    with monitoring() as address:
        line = b"GET /healthz HTTP/1.1\r\nX: "
        answer = raw(address, line + b"x" * (MAX_HEAD_BYTES + 1 - len(line)))
        assert b" 431 " in answer.split(b"\r\n")[0]


def test_a_failing_page_is_an_error_of_the_server() -> None:
    def fails() -> str:
        raise RuntimeError("canary")

    with monitoring(fails) as address:
        answer = raw(address, b"GET /readyz HTTP/1.1\r\n\r\n")
        assert b" 500 " in answer.split(b"\r\n")[0]
        assert b"canary" not in answer


def test_silent_connections_are_bounded_and_end() -> None:
    with monitoring(request_s=0.2) as address:
        host, _, port = address.rpartition(":")
        silent = [socket.create_connection((host, int(port)), PATIENCE_S) for _ in range(MAX_CONNECTIONS + 4)]
        for connection in silent:
            with connection:
                assert connection.recv(1) == b""
        assert fetch(address, "/healthz") == "alive\n"


def test_a_taken_port_is_a_mistake_of_the_settings() -> None:
    with monitoring() as address, pytest.raises(ConfigError, match=f"metrics: '{address}' cannot be bound"):
        Monitoring(address, PrometheusObserver().application(), lambda: "ready")


def test_ipv6() -> None:
    try:
        with monitoring(address="[::1]:0") as address:
            assert fetch(address, "/healthz") == "alive\n"
    except ConfigError:
        pytest.skip("this machine has no IPv6")
