"""Metrics in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol
from wsgiref.types import WSGIApplication

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cloud_supervisor.kv.store import KvStats
from cloud_supervisor.observation import (
    Answered,
    ModelSent,
    Observation,
    Prefilled,
    PrefixMissed,
    Refused,
    Stepped,
    StreamBegan,
    StreamEnded,
)
from cloud_supervisor.observers.labels import BoundedLabels

MAX_TENANTS = 200  # with a name of their own
MAX_REASONS = 50

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SESSIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_NO_CACHE = KvStats(sessions=0, bytes_used=0, budget_bytes=0, evictions=0, rebuilt_tokens=0, shared_tokens=0)


class Queue(Protocol):
    """The queue and the caches of a model, as `ModelRunner` has them. Any thread may read these."""

    @property
    def queue_length(self) -> int:
        """Requests that wait."""

    @property
    def kv_stats(self) -> KvStats:
        """The state of the KV store."""


class PrometheusObserver:
    """Counts observations, and has the metrics of one server. They are read from any thread."""

    def __init__(self, *, dropped_log_records: Callable[[], int] = lambda: 0, max_tenants: int = MAX_TENANTS) -> None:
        """Give the first `max_tenants` tenants series of their own, and all others those of tenant `other`."""
        self._tenants = BoundedLabels(max_tenants)
        self._reasons = BoundedLabels(MAX_REASONS)
        self._registry = registry = _Registry(auto_describe=True)
        ProcessCollector(registry=registry)
        self._state = _State(dropped_log_records)
        registry.register(self._state)

        def seconds(name: str, documentation: str) -> Histogram:
            return Histogram(name, documentation, buckets=_SECONDS, registry=registry)

        self._open = Gauge("chaperone_streams_open", "Streams that are open.", ["tenant"], registry=registry)
        self._ended = Counter(
            "chaperone_streams",
            "Streams that were admitted and have ended, by outcome: closed, cancelled, refused or failed.",
            ["tenant", "outcome"],
            registry=registry,
        )
        self._refusals = Counter(
            "chaperone_refusals",
            "Calls and streams that were refused, before or after they were admitted.",
            ["tenant", "reason"],
            registry=registry,
        )
        self._missed = Counter(
            "chaperone_prefixes_missed",
            "Turns of conversations whose earlier text was not kept, so that the device sent all of it.",
            ["tenant"],
            registry=registry,
        )
        self._tokens = Counter(
            "chaperone_tokens",
            "Tokens: prompt, encoded (of prompts, for the device's model), verified (compared before they were final), "
            "accepted (of them, those that stand), own (in answers to drafts), takeover (that the cloud wrote by "
            "itself), audited (final when compared).",
            ["tenant", "kind"],
            registry=registry,
        )
        self._deviations = Counter(
            "chaperone_deviations",
            "Audited tokens that the cloud would have chosen otherwise.",
            ["tenant"],
            registry=registry,
        )
        self._hits = Counter(
            "chaperone_kv_hit_tokens", "Tokens that were in the cache when a forward needed them.", registry=registry
        )
        self._sent = Counter(
            "chaperone_model_sent_bytes", "Bytes of the device's model that were sent.", ["tenant"], registry=registry
        )
        self._queue = seconds("chaperone_queue_seconds", "Time that a prompt, draft or token waited for the model.")
        self._step = seconds("chaperone_step_seconds", "Time of one forward of the model.")
        self._verification = seconds(
            "chaperone_verification_seconds", "Time from the arrival of a draft or audit to its answer."
        )
        self._first_token = seconds(
            "chaperone_first_token_seconds", "Time from the beginning of a stream to its first answer."
        )
        self._step_sessions = Histogram(
            "chaperone_step_sessions", "Sessions in one forward.", buckets=_SESSIONS, registry=registry
        )

    def watch(
        self,
        *,
        ready: Callable[[], bool],
        queue: Callable[[], Queue | None],
        certificate_expires_at: Callable[[], float] | None = None,
    ) -> None:
        """Read these when the metrics are read.

        Without a queue there is no model yet. A server in plain text has no certificate that expires.
        """
        self._state.ready, self._state.queue = ready, queue
        self._state.certificate_expires_at = certificate_expires_at

    def notice(self, observation: Observation) -> None:
        match observation:
            case Refused(tenant=tenant, reason=reason):
                self._refusals.labels(self._tenants.of(tenant), self._reasons.of(reason)).inc()
            case PrefixMissed(tenant=tenant):
                self._missed.labels(self._tenants.of(tenant)).inc()
            case StreamBegan(tenant=tenant, prompt_tokens=tokens):
                self._open.labels(self._tenants.of(tenant)).inc()
                self._count(tenant, "prompt", tokens)
            case StreamEnded(tenant=tenant, outcome=outcome):
                self._open.labels(self._tenants.of(tenant)).dec()
                self._ended.labels(self._tenants.of(tenant), outcome.value).inc()
            case Prefilled(tenant=tenant, queue_s=queue_s, encoded=encoded):
                self._queue.observe(queue_s)
                self._count(tenant, "encoded", encoded)
            case Answered():
                self._answered(observation)
            case Stepped(sessions=sessions, held_tokens=held, duration_s=duration_s):
                self._step.observe(duration_s)
                self._step_sessions.observe(sessions)
                self._hits.inc(held)
            case ModelSent(tenant=tenant, sent_bytes=sent_bytes):
                self._sent.labels(self._tenants.of(tenant)).inc(sent_bytes)

    def metric_names(self) -> frozenset[str]:
        """Return the names of all series, as a query writes them."""
        return frozenset(_names(self._registry.collect()))

    def application(self) -> WSGIApplication:
        """Return the page of the metrics."""
        return make_wsgi_app(self._registry)

    def _answered(self, answer: Answered) -> None:
        tenant = answer.tenant
        for kind in ("verified", "accepted", "own", "takeover", "audited"):
            self._count(tenant, kind, getattr(answer, kind))
        if answer.deviations:
            self._deviations.labels(self._tenants.of(tenant)).inc(answer.deviations)
        if answer.needed_forward:
            self._queue.observe(answer.queue_s)
            if not answer.takeover:
                self._verification.observe(answer.duration_s)
        if answer.first:
            self._first_token.observe(answer.since_open_s)

    def _count(self, tenant: str, kind: str, tokens: int) -> None:
        if tokens:
            self._tokens.labels(self._tenants.of(tenant), kind).inc(tokens)


class _State:
    """The metrics that are read, not counted."""

    def __init__(self, dropped_log_records: Callable[[], int]) -> None:
        self.ready: Callable[[], bool] = lambda: False
        self.queue: Callable[[], Queue | None] = lambda: None
        self.certificate_expires_at: Callable[[], float] | None = None
        self._dropped_log_records = dropped_log_records

    def collect(self) -> Iterator[Metric]:
        queue = self.queue()
        kv = _NO_CACHE if queue is None else queue.kv_stats
        length = 0 if queue is None else queue.queue_length
        yield GaugeMetricFamily("chaperone_ready", "1 if new sessions are admitted.", value=self.ready())
        yield GaugeMetricFamily("chaperone_queue_length", "Requests that wait for the model.", value=length)
        yield GaugeMetricFamily("chaperone_kv_used_bytes", "KV caches in memory.", value=kv.bytes_used)
        yield GaugeMetricFamily("chaperone_kv_budget_bytes", "Memory that KV caches may take.", value=kv.budget_bytes)
        yield CounterMetricFamily("chaperone_kv_evictions", "Caches that made room for others.", value=kv.evictions)
        yield CounterMetricFamily(
            "chaperone_kv_rebuilt_tokens", "Tokens that were read again after an eviction.", value=kv.rebuilt_tokens
        )
        yield CounterMetricFamily(
            "chaperone_kv_shared_tokens",
            "Tokens that were not read, because another text of the tenant began with them.",
            value=kv.shared_tokens,
        )
        yield CounterMetricFamily(
            "chaperone_log_records_dropped",
            "Log records that were dropped because nobody read them in time.",
            value=self._dropped_log_records(),
        )
        yield GaugeMetricFamily(
            "chaperone_tls_certificate_expiry_timestamp_seconds",
            "Expiry of the certificate of the server, in seconds since 1970; absent without one.",
            value=None if self.certificate_expires_at is None else self.certificate_expires_at(),
        )


class _Registry(CollectorRegistry):
    """A registry without the times at which series began, which double their number."""

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _names(families: Iterable[Metric]) -> Iterator[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    for family in families:
        for suffix in suffixes.get(family.type, ("",)):
            yield family.name + suffix
