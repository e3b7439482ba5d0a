"""Speed through `chaperone serve`, compared with the SDK: `python -m benchmarks endpoint`.

One cloud serves both. The endpoint is a process of its own, as a user starts it; the SDK runs in this one. Both stream
the same prompts in turns, so that a change of the machine's speed affects both alike, and who begins alternates. The
first round warms up and is not counted.

decode  tokens/s after the first final token
total   tokens/s from the request to the end

A ratio is the endpoint's speed over the SDK's, the median of all pairs of texts.

The device reads each prompt again for each text: the SDK keeps no chat, and there are more prompts than chats that the
endpoint keeps. The cloud has read each prompt in the warm-up, and may still hold it, for both sides alike.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.client
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.kit.processes import cloud_server
from benchmarks.kit.prompts import read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import interval
from chaperone_common.errors import ConfigError
from chaperone_common.session import Committed, Failed, Finished
from chaperone_common.types import Mode
from edge_client import EdgeClient, EdgeConfig
from edge_client.apps.http_api.chats import MOST_CHATS
from edge_client.config import CloudSettings

ENDPOINT = ("edge_client.apps.cli.main", "serve")
TIMEOUT_S = 600.0
TARGETS = {"decode_ratio": 0.95, "total_ratio": 0.95}
PROMPTS = Path(__file__).parents[1] / "prompt_sets" / "reporting.jsonl"


@dataclass(frozen=True, slots=True)
class Measured:
    """One text."""

    text: str
    tokens: int
    first_s: float  # from the request to the first final token
    total_s: float

    @property
    def decode_speed(self) -> float:
        """Tokens/s after the first final token."""
        return (self.tokens - 1) / max(self.total_s - self.first_s, 1e-9)

    @property
    def total_speed(self) -> float:
        """Tokens/s from the request to the end."""
        return self.tokens / self.total_s


async def by_sdk(client: EdgeClient, prompt: str, tokens: int) -> Measured:
    """Stream a text from the SDK."""
    started, first_s, text = time.perf_counter(), None, ""
    async for event in client.stream(prompt, max_new_tokens=tokens, temperature=0.0):
        match event:
            case Committed():
                first_s = first_s or time.perf_counter() - started
                text += event.text
            case Finished():
                total_s = time.perf_counter() - started
                return Measured(text + event.text, event.stats.completion_tokens, first_s or total_s, total_s)
            case Failed():
                raise event.error
            case _:
                pass
    raise RuntimeError("the generation has not ended")


def by_endpoint(url: str, pair: str, prompt: str, tokens: int) -> Measured:
    """Stream a text from the endpoint at a URL."""
    parts = urlsplit(url)
    body = {
        "model": pair,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        started, first_s, text, written = time.perf_counter(), None, "", 0
        connection.request(
            "POST", f"{parts.path}/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        for event in _events(connection.getresponse()):
            for choice in event["choices"]:
                if "source" in event.get("chaperone", {}):
                    first_s = first_s or time.perf_counter() - started
                text += choice["delta"].get("content", "")
            written = event.get("usage", {}).get("completion_tokens", written)
        total_s = time.perf_counter() - started
        return Measured(text, written, first_s or total_s, total_s)
    finally:
        connection.close()


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    if answer.status != 200:
        raise ConfigError(f"endpoint: it answered {answer.status}: {answer.read()[:300].decode(errors='replace')}")
    while line := answer.readline():
        data = line.decode().strip().removeprefix("data: ")
        if data == "[DONE]":
            return
        if data:
            event: dict[str, Any] = json.loads(data)
            if "error" in event:
                raise ConfigError(f"endpoint: {event['error']['message']}")
            yield event
    raise ConfigError("endpoint: the stream has no end")


async def compare(
    client: EdgeClient, url: str, prompts: Sequence[str], *, rounds: int, tokens: int
) -> list[tuple[Measured, Measured]]:
    """Return a pair for each round and prompt: the SDK's text, and the endpoint's."""
    pairs = []
    for number, (index, prompt) in itertools.product(range(rounds + 1), enumerate(prompts)):
        asked = asyncio.to_thread(by_endpoint, url, client.config.pair, prompt, tokens)
        if (number + index) % 2:
            endpoint, sdk = await asked, await by_sdk(client, prompt, tokens)
        else:
            sdk, endpoint = await by_sdk(client, prompt, tokens), await asked
        if number > 0:  # the first round warms up
            pairs.append((sdk, endpoint))
    return pairs


def summarised(pairs: Sequence[tuple[Measured, Measured]]) -> dict[str, Any]:
    """Return medians and ratios."""
    speeds: dict[str, Callable[[Measured], float]] = {
        "decode": lambda one: one.decode_speed,
        "total": lambda one: one.total_speed,
    }
    summary: dict[str, Any] = {"pairs": len(pairs), "same_texts": sum(a.text == b.text for a, b in pairs)}
    for name, speed in speeds.items():
        ratios = [speed(endpoint) / speed(sdk) for sdk, endpoint in pairs]
        summary[f"sdk_{name}_tokens_per_s"] = round(statistics.median(speed(sdk) for sdk, _ in pairs), 3)
        summary[f"endpoint_{name}_tokens_per_s"] = round(statistics.median(speed(one) for _, one in pairs), 3)
        summary[f"{name}_ratio"] = round(statistics.median(ratios), 4)
        summary[f"{name}_ratio_interval"] = interval(len(ratios), functools.partial(_median_of, ratios))
    for name, which in (("sdk", 0), ("endpoint", 1)):
        summary[f"{name}_first_ms"] = round(statistics.median(pair[which].first_s for pair in pairs) * 1e3, 1)
    return summary


def _median_of(ratios: Sequence[float], drawn: Any) -> float:
    return float(statistics.median(ratios[index] for index in drawn))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks endpoint`."""
    parser.add_argument("--pair", default="default")
    parser.add_argument("--mode", choices=[str(mode) for mode in Mode], default=str(Mode.EXACT))
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a prompt set")
    parser.add_argument("--count", type=int, default=6, help=f"prompts; more than {MOST_CHATS}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a text")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the numbers, the settings and the targets."""
    prompts = [prompt.text for prompt in read_prompts(args.prompts)][: args.count]
    if len(prompts) <= MOST_CHATS:
        raise ConfigError(f"count: {len(prompts)} prompts; give more than {MOST_CHATS}, the chats that are kept")
    if args.rounds < 1 or args.tokens < 2:
        raise ConfigError("rounds, tokens: give at least one round and two tokens")
    measured = provenance()
    with cloud_server(args.pair) as cloud:
        options = ("--cloud", cloud.address, "--mode", args.mode)
        with cloud_server(args.pair, arguments=options, program=ENDPOINT) as served:
            pairs = asyncio.run(_measure(args, cloud.address, served.address, prompts))
    settings = {name: getattr(args, name) for name in ("pair", "mode", "count", "rounds", "tokens")}
    return {
        "benchmark": "endpoint",
        **measured,
        "settings": {**settings, "prompts": args.prompts.name},
        "targets": TARGETS,
        "pairs": [{"sdk": _numbers(sdk), "endpoint": _numbers(endpoint)} for sdk, endpoint in pairs],
        "summary": summarised(pairs),
    }


async def _measure(
    args: argparse.Namespace, cloud: str, url: str, prompts: Sequence[str]
) -> list[tuple[Measured, Measured]]:
    config = EdgeConfig(pair=args.pair, mode=Mode(args.mode), cloud=CloudSettings(address=cloud))
    async with EdgeClient(config) as client:
        return await compare(client, url, prompts, rounds=args.rounds, tokens=args.tokens)


def _numbers(one: Measured) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if name != "text"}
