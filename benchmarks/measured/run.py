"""Compare strategies on real processes: `python -m benchmarks run`. docs/benchmarks.md describes the result.

Device and cloud are two processes with a core each. They speak gRPC across an emulated link, a third process
(`benchmarks/measured/link_process.py`). For each prompt every strategy generates in turn, and the order rotates. A
strategy has its own client, which learns from its own generations and first writes a warm-up that is discarded. Each
finished generation is written at once, so the same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kit.digests import digest_of
from benchmarks.kit.prompts import Prompt, read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.kit.work_file import WorkFile
from benchmarks.measured.assisted import ASSISTED, require_draft
from benchmarks.measured.bounds import summarise_bounds
from benchmarks.measured.generations import measure
from benchmarks.measured.llama_server import LLAMA_SERVER, LlamaCpp
from benchmarks.measured.plan import FOREIGN, ROOT, Cores, Plan, with_dtype
from benchmarks.measured.regret import measured_regret
from benchmarks.measured.summary import BASELINE, summarise
from benchmarks.simulation.trace import Trace, load_traces
from benchmarks.strategies.best_spans import PEERS, with_best
from benchmarks.strategies.other_pairs import AT, check_pair, has_traces, measured_strategy
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode
from link_emulator.command import chosen_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=Path, required=True, help="a prompt set: JSON lines of id, class and prompt")
    parser.add_argument("--first", type=int, help="only the first N prompts")
    parser.add_argument("--per-category", type=int, help="only the first N prompts of each class")
    parser.add_argument("--strategies", required=True, help="by name, separated by commas; see docs/benchmarks.md")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the file with the N of names such as sync-best")
    link = parser.add_mutually_exclusive_group()
    link.add_argument("--link", metavar="PROFILE", help="a link by the name of its profile, or by the path of one")
    link.add_argument("--rtt-ms", type=float, default=0.0, help="a link with this round trip and nothing else")
    parser.add_argument("--pair", default="default", help="of the service, and of strategies without @PAIR")
    parser.add_argument(
        "--conditioning", choices=("auto", "on", "off"), default="auto", help="device.conditioning of all devices"
    )
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="of the large model"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=1, help="of every prompt, each with a seed of its own")
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat, and of the link")
    parser.add_argument("--cold", action="store_true", help="time whole requests, prefill included")
    parser.add_argument("--traces", type=Path, nargs="*", default=[], help="of these prompts, for the bounds")
    parser.add_argument("--llama-server", type=Path, help=f"llama.cpp's server, for the strategy {LLAMA_SERVER}")
    parser.add_argument("--gguf", type=Path, help="the large model for it")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".cache" / "benchmarks", help="the folder of unfinished runs"
    )
    parser.add_argument("--fresh", action="store_true", help="start again, even if there is an unfinished run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the missing generations and return the whole result."""
    measured = provenance()
    plan = with_dtype(plan_from(args))
    traces = [trace for path in args.traces for trace in load_traces(path).traces]
    work = WorkFile(args.work / f"{digest_of(plan.identity(measured))}.jsonl", fresh=args.fresh)
    keys = plan.keys()
    missing = work.missing(keys)
    failed: list[dict[str, Any]] = []
    if missing:
        print(f"{len(missing)} of {len(keys)} generations to make; kept in {work.path}", flush=True)
        failed = measure(plan, missing, work)
    rows = [work.rows[key] for key in keys if key in work.rows] + failed
    return result_of(plan, measured, rows, traces)


def plan_from(args: argparse.Namespace) -> Plan:
    """Return the plan of a command line; raise ConfigError if an option is wrong."""
    for name in ("max_new_tokens", "repeats", "first", "per_category"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not a number from 1 on")
    profile = chosen_profile(args.link, args.rtt_ms)
    prompts = tuple(_of_each(read_prompts(args.prompts), args.per_category))[: args.first]
    if not prompts or len({prompt.id for prompt in prompts}) < len(prompts):
        raise ConfigError(f"{args.prompts}: {len(prompts)} prompts, not each with an id of its own; give each one")
    strategies = {
        category: with_best(args.strategies.split(","), args.peers, profile.rtt_ms, args.temperature, category)
        for category in dict.fromkeys(prompt.category for prompt in prompts)
    }
    for names in strategies.values():
        if len(set(names)) < len(names):
            raise ConfigError(f"--strategies: {args.strategies!r} names one twice; give each once")
    asked = dict.fromkeys(name for names in strategies.values() for name in names)
    for name in asked:
        _check_strategy(name, args)
    return Plan(
        prompts=prompts,
        strategies=strategies,
        profile=profile,
        pair=args.pair,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        repeats=args.repeats,
        seed=args.seed,
        cold=args.cold,
        conditioning=args.conditioning,
        llama=_llama_cpp(args) if LLAMA_SERVER in asked else None,
    )


def _check_strategy(name: str, args: argparse.Namespace) -> None:
    """Raise ConfigError or ModelMissing if a strategy is not known, or its models cannot be used."""
    strategy, at, _ = name.partition(AT)
    if at and strategy in FOREIGN:
        raise ConfigError(f"--strategies: {name!r}: {strategy} has no client of ours; give it without {AT}PAIR")
    if name == ASSISTED:
        require_draft(args.pair)
    elif name not in FOREIGN:
        measured_strategy(name)
        if not has_traces(name):
            check_pair(name, args.pair, args.conditioning)


def _llama_cpp(args: argparse.Namespace) -> LlamaCpp:
    if args.llama_server is None or args.gguf is None:
        raise ConfigError(f"--strategies: {LLAMA_SERVER!r} needs --llama-server and --gguf; see docs/benchmarks.md")
    files = LlamaCpp(args.llama_server, args.gguf)
    files.check()
    return files


def _of_each(prompts: Iterable[Prompt], count: int | None) -> Iterator[Prompt]:
    """Yield the first `count` prompts of each class in their order; all of them without a count."""
    met: Counter[str] = Counter()
    for prompt in prompts:
        met[prompt.category] += 1
        if count is None or met[prompt.category] <= count:
            yield prompt


def result_of(
    plan: Plan, measured: dict[str, Any], rows: Sequence[dict[str, Any]], traces: Sequence[Trace]
) -> dict[str, Any]:
    """Return the run as it is written."""
    exact = {name for name in plan.names if name not in FOREIGN and measured_strategy(name).exact}
    own = {name for name in exact if has_traces(name)}  # with the device's model of the run's own pair
    summary = summarise(rows, exact)
    summary["regret"] = measured_regret(rows, fixed=own - {str(Mode.EXACT)} | {BASELINE})
    if traces:
        known = [row for row in rows if has_traces(row["strategy"])]
        summary["bounds"] = summarise_bounds(known, traces, plan.profile.rtt_ms)
    cores = Cores.allowed()
    settings = asdict(plan) | {
        "prompts": [prompt.id for prompt in plan.prompts],
        "profile": plan.profile.model_dump(mode="json", exclude_defaults=True),
        "rtt_ms": plan.profile.rtt_ms,
        "devices": plan.described_devices(),
        "llama": plan.llama.described() if plan.llama else None,
        "cores": {"device": cores.device, "cloud": cores.cloud, "link": cores.every},
    }
    return {"benchmark": "run", **measured, "settings": settings, "generations": list(rows), "summary": summary}
