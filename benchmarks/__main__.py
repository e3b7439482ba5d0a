"""`python -m benchmarks NAME [options]`: run a measurement."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.kit.processes import ServerFailed
from chaperone_common.errors import ChaperoneError


class Benchmark(NamedTuple):
    """Where a benchmark lies below `benchmarks`, and what it measures."""

    module: str
    purpose: str


NAMES = {
    "run": Benchmark("measured.run", "strategies against each other: real processes, an emulated link"),
    "report": Benchmark("report.report", "figures and a page of the results of `run`"),
    "device": Benchmark(
        "measured.device", "the device's overhead over bare onnxruntime, and the longest event-loop gap"
    ),
    "agreement": Benchmark(
        "measured.agreement", "how often the device model agrees with the cloud model, against another export"
    ),
    "record": Benchmark("traces.record", "traces of the pair for the simulator"),
    "extend": Benchmark("traces.extend", "what BiLD and U-HLM decide by, added to traces"),
    "simulate": Benchmark("virtual.simulate", "strategies on recorded traces, on a virtual clock"),
    "calibration": Benchmark("emulator.check", "whether the link emulator does what its profiles say"),
    "peers": Benchmark(
        "virtual.peers", "the best span length of each published strategy, by round trip, in virtual time"
    ),
    "virtual": Benchmark("virtual.run", "all strategies and the clairvoyant bound, by round trip, in virtual time"),
    "validate": Benchmark("virtual.validate", "virtual time against measured runs"),
    "regret": Benchmark(
        "virtual.regret", "what exact loses against the best fixed strategy, over a grid in virtual time"
    ),
    "quality": Benchmark("quality.run", "pass@1, and whether gates keep their promises: strategies on suites of tasks"),
    "pooled": Benchmark("quality.pooled", "quality on several suites together"),
    "gates": Benchmark(
        "quality.gates", "what signals and gates catch at equal budgets, against an oracle, along explored texts"
    ),
    "fit-gate": Benchmark("quality.fit_gate", "the gate that comes with a pair, from explored texts"),
    "gate-figures": Benchmark("report.gate_figures", "figures of the results of quality and gates"),
    "risk": Benchmark("virtual.risk_constants", "the planner's fixed constants of risk, fitted on the tuning traces"),
    "cloud-profile": Benchmark("fleet.cloud_profile", "step times of cloud models, on the accelerator that is there"),
    "fleet": Benchmark("fleet.run", "many devices on a few replicas: latency, load, cost and energy"),
    "all": Benchmark(
        "report.make_all",
        "every reported speed, and what it rests on, into benchmarks/results/; goes on where it was interrupted",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; with --out, write its JSON."""
    names = "\n".join(f"  {name:13} {benchmark.purpose}" for name, benchmark in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=names, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see `python -m benchmarks NAME --help`")
    args = parser.parse_args(argv)
    try:
        return _run(args.name, args.options)
    except (ChaperoneError, ServerFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(name: str, options: Sequence[str]) -> int:
    module = importlib.import_module(f"benchmarks.{NAMES[name].module}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, help="where the result is written: JSON, or a folder for what draws figures"
    )
    module.add_arguments(parser)
    args = parser.parse_args(options)
    result = module.run(args)
    if result is None:  # it has written what there is to write
        return 0
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if "summary" in result:
        print(json.dumps(result["summary"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
