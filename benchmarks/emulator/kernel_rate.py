"""TCP throughput under the kernel's own rate limit, `tbf`, between two temporary network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NETWORK = "10.213.77"  # first three numbers of both ends' addresses, which exist only during the measurement
PORT = 5001
BURST, LATENCY = "16kb", "200ms"

SINK = """
import json, socket, time
listener = socket.create_server(("0.0.0.0", {port}))
print("ready", flush=True)
connection, _ = listener.accept()
arrivals, total = [], 0
while data := connection.recv(65536):
    total += len(data)
    arrivals.append((time.monotonic(), total))
late = [arrival for arrival in arrivals if arrival[1] >= total / 10]
print(json.dumps((late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0]) / 125_000))
"""
SOURCE = """
import socket
with socket.create_connection(("{host}", {port})) as connection:
    connection.sendall(bytes({size}))
"""


def why_no_namespace() -> str | None:
    """Return the reason why a namespace with a rate limit cannot be made here, or None."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found; install iproute2"
    if os.geteuid() != 0:
        return "only root may make a network namespace; run as root"
    try:
        with _limited_cable(1.0):
            return None
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` failed: {error.stderr.strip()}"


def kernel_mbit_s(limit_mbit_s: float, seconds: float) -> float:
    """Return the rate in Mbit/s at which the payload arrived, without its first tenth.

    The sender has a rate limit of `limit_mbit_s`, and sends for about `seconds`.
    """
    size = int(limit_mbit_s * 125_000 * seconds)
    with _limited_cable(limit_mbit_s) as (near, far):
        sink = [*_inside(far), sys.executable, "-c", SINK.format(port=PORT)]
        with subprocess.Popen(sink, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                _run(*_inside(near), sys.executable, "-c", SOURCE.format(host=f"{NETWORK}.2", port=PORT, size=size))
                return float(json.loads(process.stdout.readline()))
            finally:
                process.kill()


@contextmanager
def _limited_cable(limit_mbit_s: float) -> Iterator[tuple[str, str]]:
    """Create two namespaces, connect them by a virtual cable, and limit the rate of its near end.

    The machine's own network is not changed. The namespaces are deleted on exit.
    """
    near, far = (f"chaperone-{end}-{os.getpid()}" for end in ("near", "far"))
    try:
        for namespace in (near, far):
            _run("ip", "netns", "add", namespace)
        _run("ip", "-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far)
        for namespace, host in ((near, 1), (far, 2)):
            _run("ip", "-n", namespace, "address", "add", f"{NETWORK}.{host}/30", "dev", "cable")
            _run("ip", "-n", namespace, "link", "set", "cable", "up")
        limit = ("rate", f"{limit_mbit_s:g}mbit", "burst", BURST, "latency", LATENCY)
        _run(*_inside(near), "tc", "qdisc", "add", "dev", "cable", "root", "tbf", *limit)
        yield near, far
    finally:
        for namespace in (near, far):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _inside(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
