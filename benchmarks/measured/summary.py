"""Summary of a run's generations: medians, ratios prompt by prompt, and their intervals.

A median is one over prompts: a prompt's repeats first become one number by their own median. The 95% interval of a
ratio is a bootstrap over prompts with a fixed seed. Counts and bytes are sums over sums, not means of ratios.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.kit.statistics import interval, rounded

BASELINE = "cloud"
COMPARED = ("exact", "edge")  # further modes to compare speeds with
ALL = "all"
GAP_PERCENTILES = (50, 95, 99)

Row = Mapping[str, Any]


def summarise(rows: Sequence[Row], exact: Collection[str]) -> dict[str, Any]:
    """Return a summary by category and strategy; `exact` names the strategies that promise the cloud's own text."""
    categories = dict.fromkeys([*(row["category"] for row in rows), ALL])
    strategies = dict.fromkeys(row["strategy"] for row in rows)
    by_category = {
        category: {name: _entry(_chosen(rows, category), name) for name in strategies} for category in categories
    }
    promised = [by_category[ALL][name]["equal_cloud"] for name in strategies if name in exact]
    counted = [entry for entry in promised if entry is not None]
    return {
        "categories": by_category,
        "exact_output_equals_cloud": {
            "equal": sum(entry["equal"] for entry in counted),
            "of": sum(entry["of"] for entry in counted),
        }
        if counted
        else None,
        "link_cpu_share": _link_cpu_share(rows),
    }


def tokens_per_s(row: Row) -> float | None:
    """Return the decode speed from a warm start; of a cold run, tokens over the whole request's time."""
    if row["cold_total_ms"] is None:
        speed: float | None = row["decode_tokens_per_s"]
        return speed
    return 1e3 * len(row["token_ids"]) / float(row["cold_total_ms"])


def speeds(rows: Sequence[Row], strategy: str) -> dict[str, float]:
    """Return tokens per second by prompt, the median of its repeats."""
    found: dict[str, list[float]] = {}
    for row in _finished(rows, strategy):
        speed = tokens_per_s(row)
        if speed is not None:
            found.setdefault(row["id"], []).append(speed)
    return {prompt: statistics.median(values) for prompt, values in found.items()}


def ratios(mine: Mapping[str, float], base: Mapping[str, float]) -> list[float]:
    """Return the ratios of prompts that both have."""
    return [speed / base[prompt] for prompt, speed in mine.items() if base.get(prompt)]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)] if ordered else None


def gaps_ms(rows: Sequence[Row]) -> list[float]:
    """Return the times between consecutive final tokens in each generation; tokens that arrive together are 0 apart."""
    return [later - earlier for row in rows for earlier, later in itertools.pairwise(row["commit_ms"])]


def _chosen(rows: Sequence[Row], category: str) -> list[Row]:
    return [row for row in rows if category in (row["category"], ALL)]


def _finished(rows: Sequence[Row], strategy: str) -> list[Row]:
    return [row for row in rows if row["strategy"] == strategy and row["error"] is None]


def _entry(rows: Sequence[Row], strategy: str) -> dict[str, Any]:
    mine = _finished(rows, strategy)
    by_prompt, base = speeds(rows, strategy), speeds(rows, BASELINE)
    over_cloud = ratios(by_prompt, base)
    gaps = gaps_ms(mine)
    return {
        "generations": len(mine),
        "failed": sum(row["strategy"] == strategy and row["error"] is not None for row in rows),
        "prompts": len({row["id"] for row in mine}),
        "tokens_per_s": rounded(_median(by_prompt.values())),
        "over_cloud": rounded(_median(over_cloud)),
        "over_cloud_95": _median_interval(over_cloud),
        **_over_modes(rows, by_prompt),
        "ttft_ms": rounded(_median(row["stats"]["ttft_ms"] for row in mine)),
        "ttft_committed_ms": rounded(_median(row["stats"]["ttft_committed_ms"] for row in mine)),
        "gap_ms": {f"p{percent}": rounded(percentile(gaps, percent)) for percent in GAP_PERCENTILES},
        "equal_cloud": _equal_cloud(rows, strategy),
        **_per_token(mine),
    }


def _over_modes(rows: Sequence[Row], by_prompt: Mapping[str, float]) -> dict[str, Any]:
    """Return the median ratio to the speed of each mode in `COMPARED` that was run, with its interval."""
    entry: dict[str, Any] = {}
    for mode in COMPARED:
        if base := speeds(rows, mode):
            over = ratios(by_prompt, base)
            entry |= {f"over_{mode}": rounded(_median(over)), f"over_{mode}_95": _median_interval(over)}
    return entry


def _per_token(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return sums over sums; None if a value was not measured. The cloud's time per token excludes its prefill."""
    stats = [row["stats"] for row in rows]
    tokens = sum(row["completion_tokens"] for row in stats)

    def per_token(name: str, unit: int = 1, *, less: str | None = None) -> float | None:
        values = [row[name] for row in stats] + [-row[less] for row in stats if less and row[less] is not None]
        return round(unit * sum(values) / tokens, 3) if tokens and None not in values else None

    def on_link(name: str) -> float | None:
        return round(sum(row[name] for row in rows) / tokens, 3) if tokens else None

    return {
        "round_trips_per_100_tokens": per_token("round_trips", 100),
        "hidden_round_trips_per_100_tokens": per_token("hidden_round_trips", 100),
        "bytes_up_per_token": per_token("bytes_up"),
        "bytes_down_per_token": per_token("bytes_down"),
        "link_bytes_up_per_token": on_link("link_bytes_up"),
        "link_bytes_down_per_token": on_link("link_bytes_down"),
        "cloud_ms_per_token": per_token("cloud_compute_ms", less="prefill_ms"),
        "joules_per_token": per_token("energy_j"),
        "deviations_per_100_tokens": per_token("deviations", 100),
    }


def _equal_cloud(rows: Sequence[Row], strategy: str) -> dict[str, int] | None:
    """Return how many texts equal the cloud's, of those that both wrote; None for `cloud` itself, and without it."""
    texts = {(row["id"], row["repeat"]): row["token_ids"] for row in _finished(rows, BASELINE)}
    both = [row for row in _finished(rows, strategy) if (row["id"], row["repeat"]) in texts]
    if strategy == BASELINE or not both:
        return None
    equal = sum(list(row["token_ids"]) == list(texts[row["id"], row["repeat"]]) for row in both)
    return {"equal": equal, "of": len(both)}


def _link_cpu_share(rows: Sequence[Row]) -> float | None:
    """Return the link's share of one core while texts were written over it."""
    linked = [row for row in rows if row["error"] is None and row["link_bytes_up"]]
    total_ms = sum(row["stats"]["total_ms"] for row in linked)
    return round(sum(row["link_cpu_ms"] for row in linked) / total_ms, 5) if total_ms else None


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _median_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95% interval of the median; None for fewer than two values."""
    column = np.array(values)
    return interval(len(values), lambda drawn: float(np.median(column[drawn])))
