"""The metrics of a server, read as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.request import ProxyHandler, build_opener
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults

from prometheus_client.parser import text_string_to_metric_families


class Samples:
    """The samples of one page."""

    def __init__(self, page: str) -> None:
        self.page = page
        families = text_string_to_metric_families(page)
        self._samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels; 0 if there is none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= {**sample.labels}.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label."""
        return {sample.labels[label] for sample in self._samples if sample.name == name}

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {sample.name for sample in self._samples}


def read_page(application: WSGIApplication) -> Samples:
    """Read the page of an application without a port."""
    environment: dict[str, Any] = {"PATH_INFO": "/metrics"}
    setup_testing_defaults(environment)

    def start(status: str, headers: Any, error: Any = None) -> Callable[[bytes], object]:
        return lambda data: None

    return Samples(b"".join(application(environment, start)).decode())


def fetch(address: str, path: str) -> str:
    """Return a page of a server in a thread; raises HTTPError for a status other than 200."""
    with build_opener(ProxyHandler({})).open(f"http://{address}{path}", timeout=20) as answer:
        return str(answer.read().decode())
