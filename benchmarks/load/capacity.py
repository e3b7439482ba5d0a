"""Devices that one service serves in time, with and without batches: `python -m benchmarks capacity`.

Both services get the same devices. Their number is doubled until the 95th percentile of the latencies is over the
limit, and then bisected. `load` describes the devices.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from benchmarks.load.crowd import Crowd, recorded_texts
from benchmarks.load.device import Recorded
from benchmarks.load.run import MAX_DEVICES, add_common_arguments, check, service_of, settings_of
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest

# The settings of `limits`: as the service comes, and one request for each forward.
SERVICES: dict[str, dict[str, int]] = {"batched": {}, "one request a forward": {"step_requests": 1}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--p95-ms", type=float, default=1500.0, help="the latency within which a device counts as served"
    )
    parser.add_argument("--most-devices", type=int, default=256)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; raises ConfigError if an option is wrong."""
    check(args, {"p95_ms": (1.0, 60_000.0), "most_devices": (1, MAX_DEVICES)})
    measured = provenance()
    manifest = load_manifest(pair_folder(args.pair, "cloud"), role="cloud")
    texts: list[Recorded] = []
    summary: dict[str, Any] = {}
    for name, limits in SERVICES.items():
        with service_of(args, limits) as service:
            texts = texts or recorded_texts(args.pair, service, args.prompts, args.texts, args.text_tokens)
            crowd = Crowd(service, texts, manifest.tokenizer_digest, spans=args.spans, rate=args.rate)
            levels: dict[int, dict[str, Any]] = {}
            most = largest(_in_time(args, crowd, levels), args.most_devices)
            summary[name] = {"devices": most, "levels": [levels[number] for number in sorted(levels)]}
    batched, alone = (summary[name]["devices"] for name in SERVICES)
    summary["ratio"] = rounded(batched / alone) if alone else None
    return {
        "benchmark": "capacity",
        **measured,
        "settings": settings_of(args) | {"p95_ms": args.p95_ms, "services": SERVICES},
        "summary": summary,
    }


def _in_time(args: argparse.Namespace, crowd: Crowd, levels: dict[int, dict[str, Any]]) -> Callable[[int], bool]:
    """Return a function that says whether a number of devices is served, and adds their level."""

    def served(devices: int) -> bool:
        _, level = asyncio.run(crowd.work(devices, args.seconds))
        levels[devices] = level
        p95_ms = level["latency_ms"]["p95"]
        print(f"{devices} devices, {level['verifications_per_s']} verdicts a second: p95 {p95_ms} ms", flush=True)
        return p95_ms is not None and p95_ms <= args.p95_ms and not level["errors"] and not level["refused"]

    return served


def largest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` for which something holds, or up to an eighth less; 0 for none.

    What holds for a number must hold for all smaller ones.
    """
    good, bad = 0, 1
    while bad <= most and holds(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > max(1, good // 8):  # to an eighth: a level's percentile is no better than that
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good
