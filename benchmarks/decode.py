"""Warm decode speed of strategies against each other: `python -m benchmarks decode`.

Cloud and device are two processes with one core each, and speak over loopback. For every prompt each strategy
generates in turn, from a warm start: both ends hold the prompt's KV, nothing is drafted, the clock starts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from random import Random
from typing import Any

from benchmarks.processes import cloud_server
from benchmarks.prompts import Problem, humaneval
from benchmarks.provenance import provenance
from common.types import Mode
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings

DEVICE_CORE, CLOUD_CORE = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--strategies", default="exact,cloud", help="modes, separated by commas")
    parser.add_argument("--first", type=int, default=0, help="number of the first problem of HumanEval")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    measured = provenance()
    os.sched_setaffinity(0, {DEVICE_CORE})
    problems = humaneval(args.first, args.prompts)
    with cloud_server(args.pair, arguments=("--threads", "1"), cores=(CLOUD_CORE,)) as address:
        generations = asyncio.run(_measure(args, address, problems))
    return {
        "benchmark": "decode",
        **measured,
        "settings": {key: value for key, value in vars(args).items() if isinstance(value, str | int | float)},
        "generations": generations,
        "summary": summarise(generations),
    }


def summarise(generations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over generations, and over prompts the ratio to `cloud` with a bootstrap interval of 95%."""
    strategies = sorted({generation["strategy"] for generation in generations})
    speeds = {name: _by_prompt(generations, name) for name in strategies}
    summary: dict[str, Any] = {}
    for name in strategies:
        stats = [generation["stats"] for generation in generations if generation["strategy"] == name]
        tokens = sum(row["completion_tokens"] for row in stats)
        summary[name] = {
            "decode_tokens_per_s": round(statistics.median(speeds[name].values()), 3),
            "round_trips_per_100_tokens": round(100 * sum(row["round_trips"] for row in stats) / tokens, 2),
            "hidden_round_trips_per_100_tokens": round(
                100 * sum(row["hidden_round_trips"] for row in stats) / tokens, 2
            ),
            "cloud_compute_ms_per_token": round(
                sum(row["cloud_compute_ms"] - row["prefill_ms"] for row in stats) / tokens, 2
            ),
        }
        if "cloud" in speeds:
            ratios = [speeds[name][key] / speeds["cloud"][key] for key in speeds[name]]
            summary[name]["over_cloud"] = round(statistics.median(ratios), 3)
            summary[name]["over_cloud_95"] = _bootstrap(ratios)
    texts: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for generation in generations:
        if generation["strategy"] in (Mode.EXACT, Mode.CLOUD):
            texts.setdefault((generation["id"], generation["repeat"]), set()).add(tuple(generation["token_ids"]))
    if {Mode.EXACT, Mode.CLOUD} <= set(strategies):
        summary["exact_equals_cloud"] = f"{sum(len(variants) == 1 for variants in texts.values())} of {len(texts)}"
    return summary


async def _measure(args: argparse.Namespace, address: str, problems: Sequence[Problem]) -> list[dict[str, Any]]:
    config = EdgeConfig(
        pair=args.pair,
        closing_audit=True,  # so that what the cloud computes after the text is there is counted too
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=1, allow_spinning=False),
    )
    strategies = args.strategies.split(",")
    generations = []
    async with EdgeClient(config) as client:
        for strategy in strategies:  # the first forward of a process is not like the others
            await client.generate("Hello", mode=strategy, max_new_tokens=4)
        for repeat in range(args.repeats):
            for index, problem in enumerate(problems):
                for strategy in strategies[index % len(strategies) :] + strategies[: index % len(strategies)]:
                    generation = await _generate(client, args, problem, strategy, repeat)
                    generations.append(generation)
                    print(f"{problem.id:14} {strategy:6} {generation['decode_tokens_per_s']:6.2f} tokens/s", flush=True)
    return generations


async def _generate(
    client: EdgeClient, args: argparse.Namespace, problem: Problem, strategy: str, repeat: int
) -> dict[str, Any]:
    result = await client.generate(
        problem.message,
        mode=strategy,
        temperature=args.temperature,
        seed=repeat,
        max_new_tokens=args.max_new_tokens,
        warm_start=True,
    )
    stats = result.stats
    assert stats.decode_ms is not None, "a warm start is timed"
    return {
        "id": problem.id,
        "strategy": strategy,
        "repeat": repeat,
        "decode_tokens_per_s": round(stats.completion_tokens / stats.decode_ms * 1e3, 4),
        "cold_total_ms": round(stats.total_ms, 1),
        "token_ids": list(result.token_ids),
        "stats": stats.to_json(),
    }


def _by_prompt(generations: Sequence[dict[str, Any]], strategy: str) -> dict[str, float]:
    rows: dict[str, list[float]] = {}
    for generation in generations:
        if generation["strategy"] == strategy:
            rows.setdefault(generation["id"], []).append(generation["decode_tokens_per_s"])
    return {key: statistics.median(values) for key, values in rows.items()}


def _bootstrap(ratios: Sequence[float], draws: int = 2000) -> list[float]:
    random = Random(0)
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(draws))
    return [round(medians[int(draws * 0.025)], 3), round(medians[int(draws * 0.975)], 3)]
