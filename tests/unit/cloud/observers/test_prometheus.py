"""Observations become metrics, with a bounded number of labels and a registry of their own."""

from __future__ import annotations

from cloud_supervisor.kv.store import KvStats
from cloud_supervisor.observation import (
    Answered,
    ModelSent,
    Outcome,
    Prefilled,
    PrefixMissed,
    Refused,
    Stepped,
    StreamBegan,
    StreamEnded,
)
from cloud_supervisor.observers.prometheus import MAX_REASONS, PrometheusObserver
from tests.support.cloud.metrics import read_page

SPECIFIED = """
chaperone_ready chaperone_streams_open chaperone_streams_total chaperone_refusals_total
chaperone_queue_seconds_bucket chaperone_queue_seconds_sum chaperone_queue_seconds_count
chaperone_step_seconds_bucket chaperone_verification_seconds_bucket chaperone_first_token_seconds_bucket
chaperone_step_sessions_bucket chaperone_tokens_total chaperone_deviations_total chaperone_queue_length
chaperone_kv_used_bytes chaperone_kv_budget_bytes chaperone_kv_evictions_total chaperone_kv_rebuilt_tokens_total
chaperone_kv_hit_tokens_total chaperone_prefixes_missed_total
chaperone_log_records_dropped_total process_resident_memory_bytes process_open_fds
chaperone_model_sent_bytes_total
"""


def answered(**fields: object) -> Answered:
    usual: dict[str, object] = {
        "stream": 1,
        "tenant": "acme",
        "start": 40,
        "verified": 8,
        "accepted": 5,
        "own": 1,
        "takeover": 0,
        "audited": 0,
        "deviations": 0,
        "queue_s": 0.004,
        "compute_s": 0.02,
        "duration_s": 0.03,
        "first": False,
        "since_open_s": 0.2,
    }
    return Answered(**{**usual, **fields})  # type: ignore[arg-type]


def test_all_specified_metrics_are_named() -> None:
    assert {*SPECIFIED.split()} <= PrometheusObserver().metric_names()


def test_every_sample_is_named() -> None:
    observer = PrometheusObserver()
    for observation in (
        *(StreamBegan(1, "acme", 30, ""), Prefilled(1, "acme", 29, 0.1, 0.2), answered(deviations=1)),
        *(
            Stepped(3, 20, 40, 0.01),
            Refused("acme", "peer", "sessions", ""),
            PrefixMissed("acme"),
            StreamEnded(1, "acme", Outcome.CLOSED, 1.0),
        ),
    ):
        observer.notice(observation)
    assert read_page(observer.application()).names <= observer.metric_names()


def test_a_stream_is_counted() -> None:
    observer = PrometheusObserver()
    observer.notice(StreamBegan(1, "acme", 30, ""))
    observer.notice(StreamBegan(2, "acme", 5, ""))
    observer.notice(Prefilled(1, "acme", 29, 0.1, 0.2, encoded=20))
    observer.notice(answered(first=True, since_open_s=0.4))
    observer.notice(answered(verified=0, accepted=0, own=0, takeover=1, duration_s=0.01))
    observer.notice(answered(verified=0, accepted=0, own=0, audited=6, deviations=2))
    observer.notice(answered(verified=0, accepted=0, own=0, queue_s=0.0, compute_s=0.0))  # it repeated a settled span
    observer.notice(StreamEnded(1, "acme", Outcome.CLOSED, 2.0))
    observer.notice(PrefixMissed("acme"))
    samples = read_page(observer.application())
    assert samples("chaperone_streams_open", tenant="acme") == 1
    assert samples("chaperone_streams_total", tenant="acme", outcome="closed") == 1
    assert samples("chaperone_prefixes_missed_total", tenant="acme") == 1
    tokens = {
        kind: samples("chaperone_tokens_total", kind=kind) for kind in samples.labels("chaperone_tokens_total", "kind")
    }
    assert tokens == {"prompt": 35, "encoded": 20, "verified": 8, "accepted": 5, "own": 1, "takeover": 1, "audited": 6}
    assert samples("chaperone_deviations_total", tenant="acme") == 2
    assert samples("chaperone_verification_seconds_count") == 2, "a token of a takeover is no verification"
    assert samples("chaperone_queue_seconds_count") == 4
    assert samples("chaperone_first_token_seconds_sum") == 0.4


def test_bytes_of_models_are_counted_by_tenant() -> None:
    observer = PrometheusObserver()
    for sent_bytes in (100, 20):
        observer.notice(ModelSent("acme", sent_bytes))
    assert read_page(observer.application())("chaperone_model_sent_bytes_total", tenant="acme") == 120


def test_steps_are_counted_by_their_sessions() -> None:
    observer = PrometheusObserver()
    observer.notice(Stepped(sessions=3, tokens=20, held_tokens=100, duration_s=0.02))
    samples = read_page(observer.application())
    assert samples("chaperone_step_sessions_bucket", le="2.0") == 0
    assert samples("chaperone_step_sessions_bucket", le="4.0") == 1
    assert samples("chaperone_step_seconds_bucket", le="0.025") == 1
    assert samples("chaperone_kv_hit_tokens_total") == 100


class _Model:
    queue_length = 4
    kv_stats = KvStats(sessions=2, bytes_used=640, budget_bytes=1000, evictions=7, rebuilt_tokens=90, shared_tokens=32)


def test_the_state_is_read_with_the_metrics() -> None:
    observer = PrometheusObserver(dropped_log_records=lambda: 12)
    assert read_page(observer.application())("chaperone_kv_budget_bytes") == 0, "there is no model yet"
    observer.watch(ready=lambda: True, queue=_Model, certificate_expires_at=lambda: 1.8e9)
    samples = read_page(observer.application())
    expected: dict[str, float] = {"ready": 1, "queue_length": 4, "kv_used_bytes": 640, "kv_budget_bytes": 1000}
    expected |= {"kv_evictions_total": 7, "kv_rebuilt_tokens_total": 90, "log_records_dropped_total": 12}
    expected |= {"tls_certificate_expiry_timestamp_seconds": 1.8e9}
    assert {name: samples(f"chaperone_{name}") for name in expected} == expected


def test_tenants_and_reasons_are_bounded() -> None:
    observer = PrometheusObserver(max_tenants=2)
    for number in range(100):
        observer.notice(Refused(f"tenant-{number}", "peer", f"reason-{number}", ""))
    samples = read_page(observer.application())
    assert samples.labels("chaperone_refusals_total", "tenant") == {"tenant-0", "tenant-1", "other"}
    assert len(samples.labels("chaperone_refusals_total", "reason")) == MAX_REASONS + 1
    assert samples("chaperone_refusals_total") == 100


def test_a_tenant_keeps_its_label_while_its_stream_is_open() -> None:
    observer = PrometheusObserver(max_tenants=1)
    for number, tenant in enumerate(("a", "b", "c")):
        observer.notice(StreamBegan(number, tenant, 1, ""))
    for number, tenant in enumerate(("a", "b", "c")):
        observer.notice(StreamEnded(number, tenant, Outcome.CANCELLED, 1.0))
    samples = read_page(observer.application())
    assert {samples("chaperone_streams_open", tenant=label) for label in ("a", "other")} == {0}


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = PrometheusObserver(), PrometheusObserver()
    one.notice(StreamBegan(1, "acme", 3, ""))
    assert read_page(other.application())("chaperone_streams_open") == 0
