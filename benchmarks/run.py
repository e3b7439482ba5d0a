"""Strategies against each other on real processes: `python -m benchmarks run`; docs/benchmarks.md says what is written.

Device and cloud are two processes with a core each, and speak gRPC across an emulated link, a third process
(`benchmarks/link_process.py`). Prompt by prompt each strategy generates in turn, the first one another each time. A
strategy has a client of its own, which learns from its own generations, and first writes a warm-up that is thrown away.
Finished generations are kept at once; the same command goes on with a run that was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.assisted import ASSISTED, Assisted, require_draft
from benchmarks.contenders import Contender, Device, Measured, Wish
from benchmarks.link_process import LinkProcess, Traffic, link_process
from benchmarks.processes import ServerFailed, cloud_server
from benchmarks.provenance import provenance
from benchmarks.record import Prompt, read_prompts
from benchmarks.run_bounds import summarise_bounds
from benchmarks.simulation.simulate import Strategy
from benchmarks.simulation.trace import Trace, load_traces
from benchmarks.strategies import strategy_named
from benchmarks.summary import rounded, summarise
from benchmarks.work_file import Key, WorkFile, digest_of, digest_of_source
from common.config import load_manifest, pair_folder
from common.errors import ConfigError
from common.types import Mode
from edge_client import EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings
from link_emulator.command import chosen_profile
from link_emulator.profile import Profile

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = "Say hello, then count from one to ten."
WARM_UP_TOKENS = 32
MAX_FAILURES = 3  # in a row
QUIET_MS = 20.0  # and a round trip, without a byte: what was on its way has come
MAX_SETTLING = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    prompts: tuple[Prompt, ...]
    strategies: tuple[str, ...]
    profile: Profile
    pair: str
    max_new_tokens: int
    temperature: float
    repeats: int
    seed: int
    cold: bool

    def keys(self) -> list[Key]:
        """Every generation, in the order in which they are made: interleaved, and rotating."""
        return [
            (prompt.id, name, repeat)
            for repeat in range(self.repeats)
            for index, prompt in enumerate(self.prompts)
            for name in rotated(self.strategies, index + repeat)
        ]

    def identity(self, measured: dict[str, Any]) -> dict[str, Any]:
        """All that a generation's measurement depends on; see `benchmarks.work_file`."""
        manifests = [load_manifest(pair_folder(self.pair, role), role=role) for role in ("edge", "cloud")]
        return {
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "strategies": self.strategies,
            "link": self.profile.model_dump(mode="json"),
            "models": [manifest.model_dump(mode="json") for manifest in manifests],
            "asked": [self.max_new_tokens, self.temperature, self.seed, self.cold],
            "source": digest_of_source(ROOT),
            "versions": measured["versions"],
            "machine": measured["machine"],
        }


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the two ends run; the same core for both where there is but one."""

    device: int
    cloud: int
    every: tuple[int, ...]

    @classmethod
    def allowed(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1 % len(cores)], tuple(cores))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=Path, required=True, help="a prompt set: JSON lines of id, class and prompt")
    parser.add_argument("--first", type=int, help="only so many prompts, from the top")
    parser.add_argument("--strategies", required=True, help="by name, separated by commas; see docs/benchmarks.md")
    link = parser.add_mutually_exclusive_group()
    link.add_argument("--link", metavar="PROFILE", help="a link by the name of its profile, or by the path of one")
    link.add_argument("--rtt-ms", type=float, default=0.0, help="a link with this round trip and nothing else")
    parser.add_argument("--pair", default="default")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=1, help="of every prompt, each with a seed of its own")
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat, and of the link")
    parser.add_argument("--cold", action="store_true", help="time whole requests, prefill included")
    parser.add_argument("--traces", type=Path, nargs="*", default=[], help="of these prompts, for the bounds")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "benchmarks", help="where unfinished runs are")
    parser.add_argument("--fresh", action="store_true", help="start over, even if there is an unfinished run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not measured yet; returns all of it."""
    measured = provenance()
    plan = plan_from(args)
    traces = [trace for path in args.traces for trace in load_traces(path).traces]
    work = WorkFile(args.work / f"{digest_of(plan.identity(measured))}.jsonl", fresh=args.fresh)
    keys = plan.keys()
    missing = work.missing(keys)
    failed: list[dict[str, Any]] = []
    if missing:
        print(f"{len(missing)} of {len(keys)} generations to make; kept in {work.path}", flush=True)
        failed = _measure(plan, missing, work)
    rows = [work.rows[key] for key in keys if key in work.rows] + failed
    return result_of(plan, measured, rows, traces)


def plan_from(args: argparse.Namespace) -> Plan:
    """Check the command line; raises ConfigError."""
    for name in ("max_new_tokens", "repeats", "first"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not a number from 1 on")
    names = tuple(args.strategies.split(","))
    if len(set(names)) < len(names):
        raise ConfigError(f"--strategies: {args.strategies!r} names one twice; give each once")
    for name in names:
        if name == ASSISTED:
            require_draft(args.pair)
        else:
            strategy_named(name)
    prompts = tuple(read_prompts(args.prompts))[: args.first]
    if not prompts or len({prompt.id for prompt in prompts}) < len(prompts):
        raise ConfigError(f"{args.prompts}: {len(prompts)} prompts, not each with an id of its own; give each one")
    return Plan(
        prompts=prompts,
        strategies=names,
        profile=chosen_profile(args.link, args.rtt_ms),
        pair=args.pair,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        repeats=args.repeats,
        seed=args.seed,
        cold=args.cold,
    )


def rotated(names: Sequence[str], turns: int) -> list[str]:
    """The same order, begun somewhere else each time, so that none is always first."""
    shift = turns % len(names)
    return [*names[shift:], *names[:shift]]


def result_of(
    plan: Plan, measured: dict[str, Any], rows: Sequence[dict[str, Any]], traces: Sequence[Trace]
) -> dict[str, Any]:
    """The run as it is written."""
    exact = {name for name in plan.strategies if name != ASSISTED and strategy_named(name).mode is Mode.EXACT}
    summary = summarise(rows, exact)
    if traces:
        summary["bounds"] = summarise_bounds(rows, traces, plan.profile.rtt_ms)
    cores = Cores.allowed()
    settings = asdict(plan) | {
        "prompts": [prompt.id for prompt in plan.prompts],
        "profile": plan.profile.model_dump(mode="json", exclude_defaults=True),
        "rtt_ms": plan.profile.rtt_ms,
        "cores": {"device": cores.device, "cloud": cores.cloud, "link": cores.every},
    }
    return {"benchmark": "run", **measured, "settings": settings, "generations": list(rows), "summary": summary}


# --- Measuring ------------------------------------------------------------------------------------------------------


def _measure(plan: Plan, missing: Sequence[Key], work: WorkFile) -> list[dict[str, Any]]:
    """Make the generations; returns those that failed, which are not kept and so are tried again by the next run."""
    cores = Cores.allowed()
    manifest = load_manifest(pair_folder(plan.pair, "cloud"), role="cloud")
    server = ("--threads", "1", "--dtype", manifest.recipe["dtype"])
    with (
        cloud_server(plan.pair, arguments=server, cores=(cores.cloud,)) as address,
        link_process(plan.profile, address, seed=plan.seed, cores=cores.every) as link,
        _on_core(cores.device),
    ):
        return asyncio.run(_Runner(plan, link, cores).make(missing, work))


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """Hold this process, and the threads that it starts meanwhile, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Runner:
    """Contenders, and the link between them and the cloud."""

    def __init__(self, plan: Plan, link: LinkProcess, cores: Cores) -> None:
        self._plan = plan
        self._link = link
        self._cores = cores
        self._config = EdgeConfig(
            pair=plan.pair,
            closing_audit=True,  # so that what the cloud computes after the text is there is counted too
            cloud=CloudSettings(address=link.address),
            device=DeviceSettings(threads=1, allow_spinning=False),
        )

    async def make(self, missing: Sequence[Key], work: WorkFile) -> list[dict[str, Any]]:
        prompts = {prompt.id: prompt for prompt in self._plan.prompts}
        failed: list[dict[str, Any]] = []
        in_a_row = 0
        async with AsyncExitStack() as stack:
            contenders = {}
            for name in dict.fromkeys(name for _, name, _ in missing):
                contenders[name] = self._contender(name)
                stack.push_async_callback(contenders[name].aclose)
                await self._generate(contenders[name], WARM_UP, self._plan.seed, WARM_UP_TOKENS)
            for done, (prompt_id, name, repeat) in enumerate(missing, start=1):
                row = await self._row(contenders[name], prompts[prompt_id], name, repeat)
                in_a_row = 0 if row["error"] is None else in_a_row + 1
                if row["error"] is None:
                    work.add(row)
                else:
                    failed.append(row)
                if in_a_row == MAX_FAILURES:
                    raise ServerFailed(f"{MAX_FAILURES} generations in a row failed, the last one so: {row['error']}")
                print(f"{done:4} of {len(missing)}  {_line(row)}", flush=True)
        return failed

    def _contender(self, name: str) -> Contender:
        if name == ASSISTED:
            return Assisted(self._plan.pair, self._cores.every)
        strategy: Strategy = strategy_named(name)
        return Device(strategy, self._config)

    async def _row(self, contender: Contender, prompt: Prompt, name: str, repeat: int) -> dict[str, Any]:
        measured, traffic = await self._generate(
            contender, prompt.text, self._plan.seed + repeat, self._plan.max_new_tokens
        )
        if name == ASSISTED:
            traffic = Traffic()  # it uses no link; what crossed it are the other clients' keep-alives
        return row_of(prompt, name, repeat, measured, traffic)

    async def _generate(
        self, contender: Contender, text: str, seed: int, max_new_tokens: int
    ) -> tuple[Measured, Traffic]:
        plan = self._plan
        most = min(max_new_tokens, plan.max_new_tokens)
        wish = Wish(contender.prepare(text), plan.temperature, seed, most, warm=not plan.cold)
        before = await self._settled()
        measured = await contender.generate(wish)
        cpu_ms = self._link.traffic().cpu_ms
        return measured, replace((await self._settled()).since(before), cpu_ms=cpu_ms - before.cpu_ms)

    async def _settled(self) -> Traffic:
        """The link's counters once it is quiet: acknowledgements and audits still travel when a text has ended."""
        traffic = self._link.traffic()
        for _ in range(MAX_SETTLING):
            await asyncio.sleep((self._plan.profile.rtt_ms + QUIET_MS) / 1e3)
            earlier, traffic = traffic, self._link.traffic()
            if (earlier.bytes_up, earlier.bytes_down) == (traffic.bytes_up, traffic.bytes_down):
                break
        return traffic


def row_of(prompt: Prompt, name: str, repeat: int, measured: Measured, traffic: Traffic) -> dict[str, Any]:
    """One generation, as it is kept; docs/benchmarks.md describes the fields."""
    stats = measured.stats
    timed = len(measured.token_ids) - measured.untimed_tokens
    return {
        "id": prompt.id,
        "category": prompt.category,
        "strategy": name,
        "repeat": repeat,
        "decode_tokens_per_s": rounded(1e3 * timed / stats.decode_ms, 4) if stats.decode_ms and timed else None,
        "cold_total_ms": None if stats.decode_ms is not None else rounded(stats.total_ms),
        "token_ids": list(measured.token_ids),
        "commit_ms": [round(at_ms, 2) for at_ms in measured.commit_ms],
        "stats": stats.to_json() | dict.fromkeys(measured.unmeasured),
        "costs": asdict(measured.costs) if measured.costs is not None else None,
        "link_bytes_up": traffic.bytes_up,
        "link_bytes_down": traffic.bytes_down,
        "link_cpu_ms": round(traffic.cpu_ms, 3),
        "error": measured.error.message if measured.error is not None else None,
    }


def _line(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"{row['id']:20} {row['strategy']:12} failed: {row['error']}"
    speed = row["decode_tokens_per_s"]
    told = f"{speed:8.2f} tokens/s" if speed is not None else f"{row['stats']['total_ms']:8.0f} ms"
    return f"{row['id']:20} {row['strategy']:12} {told}"
