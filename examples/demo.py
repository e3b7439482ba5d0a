"""`python -m examples.demo`, or `make demo`: one prompt in all four modes, and a table.

Cloud and device run as two processes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.processes import ServerFailed, cloud_server
from chaperone_common.errors import ChaperoneError
from chaperone_common.session import Committed
from chaperone_common.types import Mode, Origin
from cloud_supervisor.export.pull import pull
from edge_client import EdgeClient, EdgeConfig, Generation
from edge_client.apps.cli.terminal import colours_wanted, legend, painted
from edge_client.config import CloudSettings, DeviceSettings
from edge_client.generation import Collector

PROMPT = "Write a Python function that merges two sorted lists into one sorted list, with a docstring."
MODES = (Mode.EDGE, Mode.CLOUD, Mode.EXACT, Mode.GATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Write one text in each mode, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--pair", default="default")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the generations here, as JSON")
    args = parser.parse_args(argv)
    try:
        results = run(args)
    except (ChaperoneError, ServerFailed) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start a cloud, write one text in each mode, and return the generations by mode."""
    pull(args.pair, say=print)
    threads = max(1, (os.cpu_count() or 2) // 2)
    print(f"Starting the cloud process with {threads} thread(s); the device uses as many.", flush=True)
    started = time.monotonic()
    with cloud_server(args.pair, arguments=("--threads", str(threads))) as address:
        print(f"The cloud serves on {address} after {time.monotonic() - started:.1f} s.\n")
        results = asyncio.run(_all_modes(args, address, threads))
    print_table(results)
    return {"benchmark": "demo", "generations": {str(mode): result.to_json() for mode, result in results.items()}}


async def _all_modes(args: argparse.Namespace, address: str, threads: int) -> dict[Mode, Generation]:
    config = EdgeConfig(
        pair=args.pair,
        closing_audit=True,
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=threads, allow_spinning=False),
    )
    print(f"> {args.prompt}")
    if colours_wanted(sys.stdout):
        print(f"\nColours: {legend()}")
    async with EdgeClient(config) as client:
        return {mode: await _stream(client, mode, args) for mode in MODES}


async def _stream(client: EdgeClient, mode: Mode, args: argparse.Namespace) -> Generation:
    print(f"\n--- {mode} " + "-" * (60 - len(mode)))
    request = client.request(
        args.prompt, mode=mode, temperature=args.temperature, seed=args.seed, max_new_tokens=args.max_new_tokens
    )
    collected = Collector(request)
    async for event in client.stream(request):
        collected.add(event)
        text = getattr(event, "text", "")
        origin = event.origin if isinstance(event, Committed) else Origin.DRAFT
        print(painted(text, origin) if colours_wanted(sys.stdout) else text, end="", flush=True)
    print()
    return collected.result()


def print_table(results: dict[Mode, Generation]) -> None:
    """Print a table with the duration and the cost of each mode."""
    rows: list[tuple[str, list[str]]] = [
        ("tokens", [str(len(r.token_ids)) for r in results.values()]),
        ("tokens/s", [f"{_speed(r):.1f}" for r in results.values()]),
        ("time to first token, ms", [f"{r.stats.ttft_ms or 0:.0f}" for r in results.values()]),
        ("time to first final token, ms", [f"{r.stats.ttft_committed_ms or 0:.0f}" for r in results.values()]),
        ("round trips per 100 tokens", [f"{_per_token(r, r.stats.round_trips) * 100:.1f}" for r in results.values()]),
        ("  and hidden ones", [f"{_per_token(r, r.stats.hidden_round_trips) * 100:.1f}" for r in results.values()]),
        ("bytes up per token", [f"{_per_token(r, r.stats.bytes_up):.1f}" for r in results.values()]),
        ("bytes down per token", [f"{_per_token(r, r.stats.bytes_down):.1f}" for r in results.values()]),
        ("cloud compute per token, ms", [f"{_per_token(r, r.stats.cloud_compute_ms):.0f}" for r in results.values()]),
        ("deviations", [_deviations(mode, r) for mode, r in results.items()]),
    ]
    print("\n" + " " * 32 + "".join(f"{mode:>10}" for mode in results))
    for name, cells in rows:
        print(f"{name:32}" + "".join(f"{cell:>10}" for cell in cells))
    same = results[Mode.EXACT].token_ids == results[Mode.CLOUD].token_ids
    print(f"\nexact equals cloud, token for token: {'yes' if same else 'NO'}")


def _speed(result: Generation) -> float:
    """Return tokens per second after the first one, so that reading the prompt does not count."""
    writing_ms = result.stats.total_ms - (result.stats.ttft_committed_ms or 0.0)
    return (len(result.token_ids) - 1) / writing_ms * 1e3 if writing_ms else 0.0


def _per_token(result: Generation, value: float) -> float:
    return value / max(1, len(result.token_ids))


def _deviations(mode: Mode, result: Generation) -> str:
    return "unknown" if mode is Mode.EDGE else str(result.stats.deviations)


if __name__ == "__main__":
    sys.exit(main())
