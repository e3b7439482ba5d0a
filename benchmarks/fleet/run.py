"""Simulate many devices on a few replicas: `python -m benchmarks fleet --devices 1000 --replicas 4`.

A discrete-event simulation gives latency, load, cost and energy. Each generation makes the requests that a strategy's
generations made when they were measured or simulated.

Devices stick to a replica, so a large fleet falls into independent parts. If the whole would take more than
`--max-work`, the command simulates whole replicas with their share of the devices. If a single one is still too much,
it simulates a shorter window. `simulated` in the result has the part. Generations that begin within the window are
measured to their end; load and throughput are those of the window.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet.cloud_profile import CloudProfile
from benchmarks.fleet.model import Demand, Fleet, StepTime, affine_step, load_demands, profiled_step
from benchmarks.fleet.simulation import Outcome, Simulation, part_of
from benchmarks.kit.provenance import provenance
from chaperone_common.errors import ConfigError
from chaperone_common.stats import EnergyModel
from link_emulator.profile import load_profile

PERCENTILES = (50, 90, 95, 99)
MEASURED = Path(__file__).parents[1] / "results" / "links" / "rtt100.json"
DEFAULTS = Fleet(devices=1000, replicas=4)


def report(fleet: Fleet, part: Fleet, demand: Demand, outcome: Outcome, usd_per_replica_hour: float) -> dict[str, Any]:
    """Return the numbers of the whole fleet, from the part that was simulated.

    Cost and energy are None if the cloud is so overloaded that no generation ended within the window.
    """
    if not outcome.measured:
        raise ConfigError(f"window_s: no generation of {demand.name} began in {part.window_s:g} s; raise it")
    whole = fleet.replicas / part.replicas
    tokens_per_s = outcome.tokens_in_window / part.window_s
    usd_per_s = usd_per_replica_hour * part.replicas / 3600
    return {
        "simulated": {
            "devices": part.devices,
            "replicas": part.replicas,
            "warmup_s": round(part.warmup_s, 3),
            "window_s": round(part.window_s, 3),
            "generations": outcome.measured,
        },
        "ttft_ms": _percentiles(outcome.ttft_ms),
        "per_token_ms": _percentiles(outcome.per_token_ms),
        "total_ms": _percentiles(outcome.total_ms),
        "tokens_per_s": round(tokens_per_s * whole, 1),
        "generations_under_way": round(outcome.in_flight * whole, 1),
        "cloud": {
            "utilisation": round(outcome.utilisation, 4),
            "batch": round(len(outcome.waits_ms) / outcome.steps, 2) if outcome.steps else 0.0,
            "queue": round(outcome.waiting, 2),
            "wait_ms": _percentiles(outcome.waits_ms),
        },
        "usd_per_1000_tokens": float(f"{usd_per_s / tokens_per_s * 1e3:.4g}") if tokens_per_s else None,
        "joules_per_1000_tokens": round(_joules_per_token(part, demand, outcome) * 1e3, 2) if tokens_per_s else None,
    }


def _joules_per_token(part: Fleet, demand: Demand, outcome: Outcome) -> float:
    """Return device and radio energy of the measured generations, and the cloud's by its busy time in the window."""
    model = EnergyModel()
    device = model.joules(
        device_ms=outcome.device_ms,
        cloud_ms=0.0,
        radio_ms=outcome.radio_ms,
        bytes_up=round(demand.bytes_up / demand.completion_tokens * outcome.tokens),
        bytes_down=round(demand.bytes_down / demand.completion_tokens * outcome.tokens),
    )
    busy_ms = outcome.utilisation * part.replicas * part.window_s * 1e3
    cloud = model.joules(device_ms=0.0, cloud_ms=busy_ms, radio_ms=0.0, bytes_up=0, bytes_down=0)
    return device / outcome.tokens + cloud / outcome.tokens_in_window


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, PERCENTILES)
    return {f"p{share}": round(float(value), 3) for share, value in zip(PERCENTILES, found, strict=True)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks fleet`."""
    parser.add_argument("--devices", type=int, default=DEFAULTS.devices)
    parser.add_argument("--replicas", type=int, default=DEFAULTS.replicas)
    parser.add_argument("--demand", type=Path, default=MEASURED, help="a benchmark's result, or a list of demands")
    parser.add_argument("--strategies", help="of the demands, separated by commas; default: all")
    parser.add_argument("--arrivals", choices=("closed", "poisson"), default="closed")
    parser.add_argument("--think-s", type=float, default=DEFAULTS.think_s, help="mean (assumption)")
    parser.add_argument(
        "--rtt-ms",
        default=",".join(f"{rtt:g}" for rtt in DEFAULTS.rtts_ms),
        help="round trips that devices have (assumption)",
    )
    parser.add_argument("--links", help="profiles by name or path, separated by commas, in place of --rtt-ms")
    parser.add_argument(
        "--speed-sigma", type=float, default=DEFAULTS.speed_sigma, help="spread of devices (assumption)"
    )
    parser.add_argument("--max-batch", type=int, default=DEFAULTS.max_batch)
    parser.add_argument("--profile", type=Path, help="result of `python -m benchmarks cloud-profile`")
    parser.add_argument("--shape", default="qwen2.5-7b", help="model of the profile")
    parser.add_argument("--context", type=int, default=512, help="tokens that sequences hold, for the profile")
    parser.add_argument("--step-base-ms", type=float, default=20.0, help="of a forward, without --profile (assumption)")
    parser.add_argument(
        "--step-ms-per-token", type=float, default=0.05, help="of a forward, without --profile (assumption)"
    )
    parser.add_argument("--usd-per-replica-hour", type=float, default=2.5, help="(assumption)")
    parser.add_argument("--warmup-s", type=float, default=DEFAULTS.warmup_s)
    parser.add_argument("--window-s", type=float, default=DEFAULTS.window_s)
    parser.add_argument("--max-work", type=float, default=8e5, help="events of a simulation, about")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Simulate every strategy on the same fleet; return the report and all assumptions."""
    fleet = Fleet(
        devices=args.devices,
        replicas=args.replicas,
        think_s=args.think_s,
        closed=args.arrivals == "closed",
        rtts_ms=_rtts_ms(args),
        speed_sigma=args.speed_sigma,
        max_batch=args.max_batch,
        warmup_s=args.warmup_s,
        window_s=args.window_s,
    )
    step, step_source = _step(args)
    summary = {}
    demands = _demands(args)
    for demand in demands:
        part = part_of(fleet, demand, step, args.max_work)
        outcome = Simulation(part, demand, step, args.seed).run()
        summary[demand.name] = report(fleet, part, demand, outcome, args.usd_per_replica_hour)
    return {
        "benchmark": "fleet",
        **provenance(),
        "fleet": asdict(fleet),
        "demands": [asdict(demand) for demand in demands],
        "step": step_source,
        "assumptions": {
            "usd_per_replica_hour": args.usd_per_replica_hour,
            "energy": asdict(EnergyModel()),
            "seed": args.seed,
            "max_work": args.max_work,
        },
        "summary": summary,
    }


def _rtts_ms(args: argparse.Namespace) -> tuple[float, ...]:
    if args.links:
        return tuple(load_profile(name).rtt_ms for name in args.links.split(","))
    try:
        return tuple(float(part) for part in args.rtt_ms.split(","))
    except ValueError:
        raise ConfigError(f"--rtt-ms: {args.rtt_ms!r}; give milliseconds, separated by commas") from None


def _step(args: argparse.Namespace) -> tuple[StepTime, dict[str, Any]]:
    if args.profile is not None:
        profile = CloudProfile.load(args.profile)
        profile.step_ms(args.shape, tokens=1)  # raises now if the shape is missing
        source = {"profile": args.profile.name, "shape": args.shape, "context": args.context}
        return profiled_step(profile, args.shape, args.context), source | {"header": dict(profile.header)}
    if args.step_base_ms < 0 or args.step_ms_per_token < 0 or args.step_base_ms + args.step_ms_per_token == 0:
        raise ConfigError("--step-base-ms and --step-ms-per-token: give none below 0, and one above")
    source = {"assumption": "affine", "base_ms": args.step_base_ms, "ms_per_token": args.step_ms_per_token}
    return affine_step(args.step_base_ms, args.step_ms_per_token), source


def _demands(args: argparse.Namespace) -> list[Demand]:
    demands = load_demands(args.demand)
    if args.strategies is None:
        return demands
    known = {demand.name: demand for demand in demands}
    wanted = args.strategies.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"--strategies: {', '.join(unknown)}: unknown; {args.demand.name} has {', '.join(known)}")
    return [known[name] for name in wanted]
