"""The time to the first token of a conversation's third turn: `python -m benchmarks turns --pair NAME`.

Both ends hold what a conversation has read, so that a turn reads only its own tokens. In each round a conversation has
three turns. A new text then begins with as many tokens as the third turn had to read, and shares none with any text
before: their first tokens should take as long. The two follow each other, so that other work of the machine slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kit.processes import cloud_server
from benchmarks.kit.prompts import read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from benchmarks.measured.link_process import link_process
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode, PromptInput
from edge_client import CloudSettings, DeviceSettings, EdgeClient, EdgeConfig
from edge_client.generation import Generation
from link_emulator.profile import Profile

PROMPTS = Path(__file__).parents[1] / "prompt_sets" / "prose.jsonl"
TURNS = 3
TIMES = ("ttft_ms", "ttft_committed_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--modes", default="exact,gated,cloud")
    parser.add_argument("--rounds", type=int, default=8, help="conversations in each mode")
    parser.add_argument("--reply-tokens", type=int, default=48, help="of each turn")
    parser.add_argument("--rtt-ms", type=float, default=100.0)
    parser.add_argument("--dtype", default="auto", help="of the cloud's model")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; raises ConfigError if an option is wrong."""
    for name, most in (("rounds", len(read_prompts(PROMPTS)) // TURNS), ("reply_tokens", 400)):
        if not 1 <= getattr(args, name) <= most:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)} is outside [1, {most}]")
    modes = [_mode(name) for name in args.modes.split(",")]
    measured = provenance()
    cores = sorted(os.sched_getaffinity(0))
    profile = Profile.fixed(args.rtt_ms)
    arguments = ("--dtype", args.dtype, "--threads", "1")
    with (
        cloud_server(args.pair, arguments=arguments, cores=cores[:1]) as service,
        link_process(profile, service.address, seed=0, cores=cores) as link,
    ):
        rows = asyncio.run(_measure(args, modes, link.address))
    settings = {name: getattr(args, name) for name in ("pair", "rounds", "reply_tokens", "rtt_ms", "dtype")}
    summary = {mode.value: _summary([row for row in rows if row["mode"] == mode]) for mode in modes}
    return {"benchmark": "turns", **measured, "settings": settings, "summary": summary, "rows": rows}


def _mode(name: str) -> Mode:
    try:
        return Mode(name)
    except ValueError:
        raise ConfigError(f"--modes: {name!r} is none of {', '.join(mode.value for mode in Mode)}") from None


async def _measure(args: argparse.Namespace, modes: Sequence[Mode], address: str) -> list[dict[str, Any]]:
    config = EdgeConfig(pair=args.pair, cloud=CloudSettings(address=address), device=DeviceSettings(threads=1))
    said = [prompt.text for prompt in read_prompts(PROMPTS)]
    rows: list[dict[str, Any]] = []
    async with EdgeClient(config) as client:
        for number in range(args.rounds + 1):  # the first round warms both ends up, and is not counted
            for index, mode in enumerate(modes):
                messages = [said[(number * TURNS + turn) % len(said)] for turn in range(TURNS)]
                beginning = 1 + number * len(modes) + index  # a token id that begins no text before
                third, first = await _round(client, mode, messages, args.reply_tokens, beginning)
                if number:
                    rows.append({"mode": mode, "third": _row(third), "first": _row(first)})
    return rows


async def _round(
    client: EdgeClient, mode: Mode, messages: Sequence[str], reply_tokens: int, beginning: int
) -> tuple[Generation, Generation]:
    """Return the last turn of a conversation, and a new text that has to read as much."""
    system = f"This is conversation {beginning}."  # no other begins so, and what both ends hold of those is no help
    chat = client.conversation(system=system, mode=mode, max_new_tokens=reply_tokens)
    turns = [await chat.generate(message) for message in messages]
    chat.close()
    third = turns[-1]
    cached = third.stats.cloud_cached_tokens if mode is Mode.CLOUD else third.stats.edge_cached_tokens
    new = len(third.prompt_token_ids) - cached
    # No cache can have this text: its first token differs from those of all others.
    prompt = PromptInput((beginning, *third.prompt_token_ids[len(third.prompt_token_ids) - new + 1 :]))
    return third, await client.generate(prompt, mode=mode, max_new_tokens=reply_tokens)


def _row(generation: Generation) -> dict[str, Any]:
    stats = generation.stats
    names = ("prompt_tokens", "edge_cached_tokens", "cloud_cached_tokens", *TIMES)
    return {name: getattr(stats, name) for name in names}


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return medians of both, and the ratio of the medians."""
    summary: dict[str, Any] = {
        "new_tokens": rounded(float(np.median([row["first"]["prompt_tokens"] for row in rows])), 1),
        "prompt_tokens": rounded(float(np.median([row["third"]["prompt_tokens"] for row in rows])), 1),
    }
    for name in TIMES:
        third, first = (float(np.median([row[turn][name] for row in rows])) for turn in ("third", "first"))
        summary[name] = {"third": rounded(third, 1), "first": rounded(first, 1), "ratio": rounded(third / first)}
    return summary
