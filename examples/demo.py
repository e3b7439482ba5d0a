"""`python -m examples.demo`, or `make demo`: two prompts in all four modes, and a table for each.

Cloud and device run as two processes. The client is warm: it has answered other prompts before."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from benchmarks.kit.processes import ServerFailed, cloud_server
from chaperone_common.errors import ChaperoneError
from chaperone_common.session import Audited, Committed, Finished
from chaperone_common.types import Mode
from cloud_supervisor.export.pull import pull
from edge_client import EdgeClient, EdgeConfig, GenerationRequest
from edge_client.apps.cli.terminal import colours_wanted, legend, painted
from edge_client.config import CloudSettings, DeviceSettings
from edge_client.generation import Collector
from examples.demo_table import WIDTH, Answer, Answers, answer_of, explanation, prompt_json, table

PROMPTS = (
    "Write a Python function that merges two sorted lists into one sorted list, with a docstring.",
    "Describe an early morning in a small harbour town, in one paragraph.",
)
# Other prompts than those of the tables, one of each kind.
WARM_UP_PROMPTS = ("Write a Python function that counts the words in a file.", "What is a lighthouse for?")
WARM_UP_TOKENS = 24
MODES = (Mode.EDGE, Mode.CLOUD, Mode.EXACT, Mode.GATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer each prompt in each mode, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--pair", default="default")
    parser.add_argument("--prompt", action="append", help="once or twice; replaces the two prompts of the demo")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the generations here, as JSON")
    args = parser.parse_args(argv)
    args.prompt = args.prompt or [*PROMPTS]
    if len(args.prompt) > len(PROMPTS):
        parser.error(f"--prompt: given {len(args.prompt)} times; give it once or twice")
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
    """Start a cloud, answer each prompt in each mode, print the tables, and return the JSON of `--out`."""
    pull(args.pair, say=print)
    threads = max(1, (os.cpu_count() or 2) // 2)
    print(f"Starting the cloud process with {threads} thread(s); the device uses as many.", flush=True)
    started = time.monotonic()
    with cloud_server(args.pair, arguments=("--threads", str(threads))) as (address, _):
        print(f"The cloud serves on {address} after {time.monotonic() - started:.1f} s.")
        answered = asyncio.run(_all_prompts(args, address, threads))
    print_tables(args.prompt, answered)
    prompts = [prompt_json(prompt, answers) for prompt, answers in zip(args.prompt, answered, strict=True)]
    return {"benchmark": "demo", "generations": prompts[0]["generations"], "prompts": prompts}


async def _all_prompts(args: argparse.Namespace, address: str, threads: int) -> list[Answers]:
    config = EdgeConfig(
        pair=args.pair,
        closing_audit=True,
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=threads, allow_spinning=False),
    )
    async with EdgeClient(config) as client:
        await _warm_up(client, args)
        if colours_wanted(sys.stdout):
            print(f"Colours: {legend()}")
        return [await _all_modes(client, args, prompt) for prompt in args.prompt]


async def _warm_up(client: EdgeClient, args: argparse.Namespace) -> None:
    """Load the model, connect, and let planner and gate learn, so that the tables do not measure a first use."""
    tokens = min(WARM_UP_TOKENS, args.max_new_tokens)
    print(
        f"Warm-up, not shown: each mode answers {len(WARM_UP_PROMPTS)} other prompts with up to {tokens} tokens.\n"
        "It loads the model, connects to the cloud, and gives planner and gate their first measurements.",
        flush=True,
    )
    for mode in MODES:
        for prompt in WARM_UP_PROMPTS:
            await client.generate(_request(client, args, prompt, mode, tokens))


async def _all_modes(client: EdgeClient, args: argparse.Namespace, prompt: str) -> Answers:
    print(f"\n> {prompt}")
    return {mode: await _stream(client, _request(client, args, prompt, mode, args.max_new_tokens)) for mode in MODES}


def _request(client: EdgeClient, args: argparse.Namespace, prompt: str, mode: Mode, tokens: int) -> GenerationRequest:
    return client.request(prompt, mode=mode, temperature=args.temperature, seed=args.seed, max_new_tokens=tokens)


async def _stream(client: EdgeClient, request: GenerationRequest) -> Answer:
    """Print the final text while it is written, and return it with its audits."""
    print(f"\n--- {request.mode} " + "-" * (60 - len(request.mode)))
    collected = Collector(request)
    audits: list[Audited] = []
    coloured = colours_wanted(sys.stdout)
    async for event in client.stream(request):
        collected.add(event)
        match event:
            case Committed(text=text, origin=origin):
                print(painted(text, origin) if coloured else text, end="", flush=True)
            case Finished(text=text):
                print(text)
            case Audited():
                audits.append(event)
            case _:
                pass
    return answer_of(collected.result(), audits)


def print_tables(prompts: Sequence[str], answered: Sequence[Answers]) -> None:
    """Print a table for each prompt, and an explanation of the columns."""
    for prompt, answers in zip(prompts, answered, strict=True):
        print(f"\n> {shorten(prompt, WIDTH - 2)}")
        print(*table(answers), sep="\n")
    print("", *explanation(answered), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
