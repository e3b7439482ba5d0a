"""Alerts, dashboard and the rule of the autoscaler: valid queries for metrics that the cloud has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from cloud_supervisor.observers.prometheus import PrometheusObserver
from tests.support.processes.commands import ROOT

MONITORING = ROOT / "docker" / "monitoring"
HISTOGRAMS = {
    "chaperone_first_token_seconds",
    "chaperone_queue_seconds",
    "chaperone_step_seconds",
    "chaperone_step_sessions",
    "chaperone_verification_seconds",
}
COUNTERS_AND_GAUGES = {
    "chaperone_deviations_total",
    "chaperone_kv_budget_bytes",
    "chaperone_kv_evictions_total",
    "chaperone_kv_hit_tokens_total",
    "chaperone_kv_rebuilt_tokens_total",
    "chaperone_kv_used_bytes",
    "chaperone_log_records_dropped_total",
    "chaperone_queue_length",
    "chaperone_ready",
    "chaperone_refusals_total",
    "chaperone_streams_open",
    "chaperone_streams_total",
    "chaperone_tls_certificate_expiry_timestamp_seconds",
    "chaperone_tokens_total",
}
# Of Prometheus, and of the process collector of its client.
FOREIGN = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds", "up"}
LABELS = {
    "chaperone_deviations_total": {"tenant"},
    "chaperone_refusals_total": {"tenant", "reason"},
    "chaperone_streams_open": {"tenant"},
    "chaperone_streams_total": {"tenant", "outcome"},
    "chaperone_tokens_total": {"tenant", "kind"},
}
VALUES = {
    "outcome": {"closed", "cancelled", "moved", "refused", "failed"},
    "kind": {"prompt", "verified", "accepted", "own", "takeover", "audited"},
}
OF_PROMETHEUS = {"instance", "job", "namespace", "pod"}  # labels that every series has from its scrape


def series_of_the_cloud() -> frozenset[str]:
    """Return the names of all series that a scrape of the cloud gives."""
    return PrometheusObserver().metric_names() | FOREIGN


def alerts() -> list[Any]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    rules: list[Any] = group["rules"]
    return rules


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboards" / "cloud.json").read_text(encoding="utf-8"))


def queries() -> Iterator[tuple[str, str]]:
    """Yield where each query stands, and its text, with a value in place of each variable."""
    for rule in alerts():
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$tenant", ".*")
            yield f"panel {panel['title']} {target['refId']}", text
    for rule in yaml.safe_load((MONITORING / "adapter-rules.yaml").read_text(encoding="utf-8"))["rules"]:
        yield "adapter, discovery", rule["seriesQuery"]
        text = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
        yield "adapter", text.replace("<<.LabelMatchers>>", 'namespace="chaperone", pod=~"a|b"')


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Return the selectors of a query; raise ValueError for one that Prometheus would refuse."""
    found: list[promql_parser.VectorSelector] = []

    def visit(expression: promql_parser.Expr) -> None:
        if isinstance(expression, promql_parser.VectorSelector):
            found.append(expression)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


@pytest.mark.parametrize("query", [pytest.param(text, id=where) for where, text in queries()])
def test_a_query_asks_for_metrics_of_the_cloud(query: str) -> None:
    assert "$" not in query
    asked = selectors(query)
    assert asked
    for selector in asked:
        assert selector.name in series_of_the_cloud()
        for matcher in selector.matchers.matchers:
            assert matcher.name in LABELS.get(selector.name, set()) | OF_PROMETHEUS
            if matcher.name in VALUES:
                assert matcher.value in VALUES[matcher.name]


def test_a_misspelt_metric_would_be_found() -> None:
    (selector,) = selectors("sum(rate(chaperone_refusal_total[5m]))")
    assert selector.name not in series_of_the_cloud()
    with pytest.raises(ValueError, match="invalid|unexpected|unclosed|missing"):
        selectors("sum(rate(chaperone_refusals_total[5m])")


def test_the_dashboard_shows_every_metric() -> None:
    shown = {str(s.name) for where, query in queries() if where.startswith("panel") for s in selectors(query)}
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert (HISTOGRAMS | COUNTERS_AND_GAUGES) - names == set()


def test_the_dashboard_is_well_formed() -> None:
    board = dashboard()
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        cells |= taken
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) - {"__rate_interval"}
    assert used == variables


def test_grafana_finds_the_data_source_of_the_dashboard() -> None:
    provisioning = MONITORING / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))
    (variable,) = [each for each in dashboard()["templating"]["list"] if each["type"] == "datasource"]
    assert variable["current"]["value"] in {source["uid"] for source in sources["datasources"]}


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in alerts()])
def test_an_alert_says_what_to_do(rule: Any) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert {"summary", "description", "runbook", "runbook_url"} == rule["annotations"].keys()
    assert re.fullmatch(r"docs/operations\.md#[a-z-]+", rule["annotations"]["runbook_url"])


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in alerts()])
def test_the_runbook_of_an_alert_exists(rule: Any) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert rule["annotations"]["runbook_url"].partition("#")[2] in anchors
