"""The numbers of a fleet, from the replicas that were simulated."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.fleet.capacity import Need
from benchmarks.fleet.model import Demand, Fleet
from benchmarks.fleet.spread import Spread
from benchmarks.fleet.totals import Totals
from chaperone_common.errors import ConfigError
from chaperone_common.stats import EnergyModel

PERCENTILES = (50, 90, 95, 99)


def report(fleet: Fleet, part: Fleet, demand: Demand, totals: Totals, usd_per_replica_hour: float) -> dict[str, Any]:
    """Return the numbers of the whole fleet; `part` has the window that was simulated.

    Cost and energy are None if the cloud is so overloaded that no generation ended within the window.
    """
    if not totals.measured:
        raise ConfigError(f"window_s: no generation of {demand.name} began in {part.window_s:g} s; raise it")
    whole = fleet.replicas / totals.replicas
    tokens_per_s = totals.tokens_in_window / part.window_s
    usd_per_s = usd_per_replica_hour * totals.replicas / 3600
    busy_s = totals.utilisation * part.window_s
    error = totals.answers.error(fleet.replicas)
    return {
        "simulated": {
            "devices": totals.devices,
            "replicas": totals.replicas,
            "warmup_s": round(part.warmup_s, 3),
            "window_s": round(part.window_s, 3),
            "generations": totals.measured,
            "answers": len(totals.answers),
        },
        "ttft_ms": _percentiles(totals.ttft_ms),
        "per_token_ms": _percentiles(totals.per_token_ms),
        "total_ms": _percentiles(totals.total_ms),
        "verification_ms": _percentiles(totals.verification_ms),
        "writing_ms": _percentiles(totals.writing_ms),
        "prompt_ms": _percentiles(totals.prompt_ms),
        "late_share": round(totals.answers.late_share, 5),
        "late_share_error": None if error is None else round(error, 5),
        "late_prompt_share": round(totals.prompts.late_share, 5),
        "tokens_per_s": round(tokens_per_s * whole, 1),
        "generations_under_way": round(totals.in_flight * whole, 1),
        "cloud": {
            "utilisation": round(totals.utilisation / totals.replicas, 4),
            "batch": round(totals.chunks / totals.steps, 2) if totals.steps else 0.0,
            "step_tokens": round(totals.fed_tokens / totals.steps, 2) if totals.steps else 0.0,
            "queue": round(totals.waiting / totals.replicas, 2),
            "wait_ms": _percentiles(totals.waits_ms),
            "most_sessions": totals.most_in_flight,
            "refused": totals.refused,
            "evictions": totals.evictions,
        },
        "cloud_s_per_1000_tokens": float(f"{busy_s / totals.tokens_in_window * 1e3:.4g}") if tokens_per_s else None,
        "usd_per_1000_tokens": float(f"{usd_per_s / tokens_per_s * 1e3:.4g}") if tokens_per_s else None,
        "joules_per_1000_tokens": round(_joules_per_token(part, demand, totals) * 1e3, 2) if tokens_per_s else None,
    }


def need_row(need: Need, demand: Demand, usd_per_replica_hour: float) -> dict[str, Any]:
    """Return the replicas that a fleet needs, and its numbers with them."""
    numbers = report(need.fleet, need.fleet, demand, need.totals, usd_per_replica_hour)
    replicas = need.fleet.replicas if need.enough else None
    if not demand.requests:
        replicas = 0
    return {
        "strategy": demand.name,
        "devices": need.fleet.devices,
        "replicas": replicas,
        "devices_per_replica": round(need.fleet.devices / replicas, 1) if replicas else None,
        "trials": [asdict(trial) for trial in need.trials],
        **numbers,
    }


def _joules_per_token(part: Fleet, demand: Demand, totals: Totals) -> float:
    """Return device and radio energy of the measured generations, and the cloud's by its busy time in the window."""
    model = EnergyModel()
    device = model.joules(
        device_ms=totals.device_ms,
        cloud_ms=0.0,
        radio_ms=totals.radio_ms,
        bytes_up=round(demand.bytes_up / demand.completion_tokens * totals.tokens),
        bytes_down=round(demand.bytes_down / demand.completion_tokens * totals.tokens),
    )
    busy_ms = totals.utilisation * part.window_s * 1e3
    cloud = model.joules(device_ms=0.0, cloud_ms=busy_ms, radio_ms=0.0, bytes_up=0, bytes_down=0)
    return device / totals.tokens + cloud / totals.tokens_in_window


def _percentiles(values: Spread) -> dict[str, float]:
    return values.percentiles(PERCENTILES)
