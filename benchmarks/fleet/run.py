"""Simulate many devices on a few replicas: `python -m benchmarks fleet --devices 1000 --replicas 4`.

A discrete-event simulation gives latency, load, cost and energy. Each generation makes the requests that a strategy's
generations made when they were measured or simulated. Each replica is the service's own scheduler, whose forwards take
the time of a cloud profile.

Devices stay with a replica, so replicas are simulated one after the other. If all would take more than `--max-work`,
the command simulates some of them. If a single one is still too much, it simulates a shorter window. `simulated` in the
result has the part. Generations that begin within the window are measured to their end; load and throughput are those
of the window.

With `--needed 1000,10000,100000`, the command searches the replicas that each number of devices needs, so that 95% of
the answers come within `--target-ms` and 95% of the prompts are read within `--prompt-target-ms`. It simulates the
whole fleet with them.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cloud_profile.run import CloudProfile
from benchmarks.fleet.capacity import LATE_SHARE, RESOLUTION, Search, needs, part_of
from benchmarks.fleet.model import Demand, Fleet, StepTime, affine_step, load_demands, profiled_step
from benchmarks.fleet.report import need_row, report
from benchmarks.fleet.totals import Target
from benchmarks.kit.provenance import provenance
from chaperone_common.errors import ConfigError
from chaperone_common.stats import EnergyModel
from link_emulator.profile import load_profile

_OF_NEEDS = ("strategy", "devices", "replicas", "devices_per_replica", "trials")
MEASURED = Path(__file__).parents[1] / "results" / "links" / "rtt100.json"
DEFAULTS = Fleet(devices=1000, replicas=4)


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
    parser.add_argument("--tenants", type=int, default=DEFAULTS.tenants, help="of the devices (assumption)")
    parser.add_argument("--step-tokens", type=int, default=DEFAULTS.step_tokens, help="as limits.step_tokens")
    parser.add_argument(
        "--prefill-chunk-tokens", type=int, default=DEFAULTS.prefill_chunk_tokens, help="as limits.prefill_chunk_tokens"
    )
    parser.add_argument(
        "--prefill-step-ms", type=float, default=DEFAULTS.prefill_step_ms, help="as limits.prefill_step_ms"
    )
    parser.add_argument("--max-queue", type=int, default=DEFAULTS.max_queue, help="as limits.max_queue")
    parser.add_argument(
        "--kv-tokens", type=int, default=DEFAULTS.kv_tokens, help="tokens of a replica's KV budget (assumption)"
    )
    parser.add_argument("--needed", help="numbers of devices, separated by commas: find the replicas that each needs")
    parser.add_argument("--target-ms", type=float, default=1500.0, help="with --needed: of 95%% of the answers")
    parser.add_argument("--prompt-target-ms", type=float, default=5000.0, help="with --needed: of 95%% of the prompts")
    parser.add_argument("--sample-answers", type=int, default=40_000, help="of each trial of --needed, at least")
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
    parser.add_argument("--max-work", type=float, default=8e5, help="forwards of a simulation, about")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Simulate every strategy on the same fleet; return the report and all assumptions."""
    began_s = time.process_time()
    fleet = _fleet(args)
    step, step_source = _step(args)
    sizes = _sizes(args)
    target = Target(args.target_ms, args.prompt_target_ms)
    if args.sample_answers < 1:
        raise ConfigError(f"--sample-answers: {args.sample_answers}; give at least 1")
    measured = provenance()
    summary: dict[str, Any] = {}
    needed: list[dict[str, Any]] = []
    demands = _demands(args)
    for demand in demands:
        search = Search(demand, step, args.seed, target, args.sample_answers)
        if sizes:
            rows = [need_row(need, demand, args.usd_per_replica_hour) for need in needs(search, fleet, sizes)]
            needed += rows
            summary[demand.name] = {name: rows[-1][name] for name in rows[-1] if name not in _OF_NEEDS}
        else:
            part, answers = part_of(fleet, demand, step, args.max_work)
            totals = search.simulate(part, part.replicas, answers)
            summary[demand.name] = report(fleet, part, demand, totals, args.usd_per_replica_hour)
    return {
        "benchmark": "fleet",
        **measured,
        "fleet": asdict(fleet) | {"max_batch": fleet.step_tokens},
        "demands": [asdict(demand) for demand in demands],
        "step": step_source,
        "assumptions": {
            "usd_per_replica_hour": args.usd_per_replica_hour,
            "energy": asdict(EnergyModel()),
            "seed": args.seed,
            "max_work": args.max_work,
        },
        "target": asdict(target) | {"share": 1 - LATE_SHARE, "resolution": RESOLUTION},
        "cost": {
            "processor_s": round(time.process_time() - began_s, 1),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        },
        "needed": needed,
        "summary": summary,
    }


def _fleet(args: argparse.Namespace) -> Fleet:
    fleet = Fleet(
        devices=args.devices,
        replicas=args.replicas,
        think_s=args.think_s,
        closed=args.arrivals == "closed",
        rtts_ms=_rtts_ms(args),
        speed_sigma=args.speed_sigma,
        tenants=args.tenants,
        step_tokens=args.step_tokens,
        prefill_chunk_tokens=args.prefill_chunk_tokens,
        prefill_step_ms=args.prefill_step_ms,
        max_queue=args.max_queue,
        kv_tokens=args.kv_tokens,
        warmup_s=args.warmup_s,
        window_s=args.window_s,
    )
    fleet.scheduler()  # raises now if a limit serves nobody
    return fleet


def _sizes(args: argparse.Namespace) -> list[int]:
    if args.needed is None:
        return []
    try:
        sizes = [int(part) for part in args.needed.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ConfigError(f"--needed: {args.needed!r}; give numbers of devices of at least 1, separated by commas")
    return sorted(sizes)


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
