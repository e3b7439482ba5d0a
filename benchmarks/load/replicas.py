"""The replicas of `chaperone-cloud serve --engine ray`: their processes, and the streams that each has begun."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil
from prometheus_client.parser import text_string_to_metric_families

_METRICS = re.compile(r"metrics, health and readiness on http://(127\.0\.0\.1:\d+)")
_PATIENCE_S = 20.0
OPEN, ENDED = "chaperone_streams_open", "chaperone_streams_total"


class Replicas:
    """The replicas of one service on this machine, which has a port for metrics on each (`--metrics 127.0.0.1:0`)."""

    def __init__(self, pid: int, log: Path) -> None:
        """`pid` is the service's process, and `log` its standard error, which names the ports."""
        self._pid = pid
        self._log = log

    def all_processes(self) -> list[psutil.Process]:
        """Return all processes that the service has started, those of Ray itself among them."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._pid).children(recursive=True)
        return []

    def by_address(self) -> dict[str, psutil.Process]:
        """Return the replicas that run, by the address of their metrics."""
        addresses = _METRICS.findall(self._log.read_text(encoding="utf-8", errors="replace"))
        by_port = {int(address.rpartition(":")[2]): address for address in addresses}
        found = {}
        for process in self.all_processes():
            with suppress(psutil.Error):  # it ends just now
                if any("ServeReplica" in word for word in process.cmdline()):
                    ports = {each.laddr.port for each in process.net_connections() if each.status == "LISTEN"}
                    found.update({by_port[port]: process for port in ports & by_port.keys()})
        return found

    def streams(self, *metrics: str) -> dict[str, int]:
        """Return the sum of metrics such as OPEN for each replica, by its address."""
        return {address: _sum(address, metrics) for address in self.by_address()}


def _sum(address: str, metrics: tuple[str, ...]) -> int:
    with build_opener(ProxyHandler({})).open(f"http://{address}/metrics", timeout=_PATIENCE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return sum(int(sample.value) for family in families for sample in family.samples if sample.name in metrics)
