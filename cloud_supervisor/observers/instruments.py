"""All observers of one server, as its settings want them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from chaperone_common.errors import ConfigError
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.observation import Observer, Observers
from cloud_supervisor.observers.log import LogObserver
from cloud_supervisor.observers.log_output import dropped_records
from cloud_supervisor.observers.prometheus import PrometheusObserver


@dataclass(frozen=True, slots=True)
class Instruments:
    """The observers of a server, and its metrics where they are wanted."""

    observer: Observer = field(default_factory=Observers)
    metrics: PrometheusObserver | None = None
    close: Callable[[], None] = lambda: None  # sends what is left; may block for seconds


def build_instruments(config: CloudConfig) -> Instruments:
    """Return the observers that the settings name; raises ConfigError for a tracing endpoint that cannot be used."""
    observers: list[Observer] = [LogObserver()]
    metrics = None
    if config.metrics is not None:
        metrics = PrometheusObserver(dropped_log_records=dropped_records)
        observers.append(metrics)
    endpoint = config.tracing.otlp_endpoint
    if endpoint is None:
        return Instruments(Observers(observers), metrics)
    _check_endpoint(endpoint)
    try:
        from cloud_supervisor.observers.spans import otlp_spans  # takes half a second to import
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise ConfigError(
            f"tracing.otlp_endpoint: {endpoint!r} needs more packages: pip install 'chaperone-llm[otel]'"
        ) from None
    spans = otlp_spans(endpoint)
    return Instruments(Observers([*observers, spans]), metrics, spans.close)


def _check_endpoint(endpoint: str) -> None:
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"tracing.otlp_endpoint: {endpoint!r} is no URL of a collector; write http://HOST:4318/v1/traces"
        )
