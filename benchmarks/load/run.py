"""Many devices on one service: `python -m benchmarks load --pair NAME --devices N --seconds S`.

The service is a process of its own. Each device verifies texts that the cloud wrote before, some tokens of them made
wrong. Its spans come at random times, `--rate` a second on average, whether or not the service keeps up (open loop): a
latency runs from the time at which a span was to be sent. The devices share a process, and each has a network of
`--rtt-ms`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import numpy as np
import psutil

from benchmarks.kit.processes import CloudProcess, cloud_server
from benchmarks.kit.prompts import read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from benchmarks.load.device import Device, Habits, Observed, Recorded, record
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.errors import ConfigError
from edge_client.text import ChatTemplate, Tokenizer

PROMPTS = Path(__file__).parents[1] / "prompt_sets" / "prose.jsonl"
MAX_DEVICES = 10_000
MAX_SECONDS = 3_600.0
CHANNELS = 8  # connections that the devices share
LOOKS = 20  # at the service's memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.5, help="verifications per second of one device, on average")
    parser.add_argument("--spans", type=int, default=8, help="tokens of a span")
    parser.add_argument("--wrong", type=float, default=0.05, help="share of the drafted tokens that are made wrong")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="of every device's network")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a prompt set: JSON lines of id, class, prompt")
    parser.add_argument("--texts", type=int, default=4, help="recorded texts that the devices share")
    parser.add_argument("--text-tokens", type=int, default=48, help="of each recorded text")
    parser.add_argument("--dtype", default="auto", help="of the cloud's model")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", help="a setting of `limits`")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; raises ConfigError if an option is wrong."""
    _check(args)
    limits = {name: json.loads(number) for name, _, number in (limit.partition("=") for limit in args.limit)}
    measured = provenance()
    folder = pair_folder(args.pair, "cloud")
    manifest = load_manifest(folder, role="cloud")
    tokenizer = Tokenizer.load(folder, manifest)
    template = ChatTemplate.load(folder, tokenizer)
    prompts = [
        tuple(tokenizer.encode(template.render([{"role": "user", "content": prompt.text}])))
        for prompt in read_prompts(args.prompts)[: args.texts]
    ]
    with TemporaryDirectory() as temporary:
        config = Path(temporary, "cloud.yaml")
        config.write_text(json.dumps({"dtype": args.dtype, "limits": limits}), encoding="utf-8")
        with cloud_server(args.pair, arguments=("--config", str(config))) as service:
            summary = asyncio.run(_load(args, service, manifest, prompts))
    settings = {
        name: getattr(args, name)
        for name in ("pair", "rate", "spans", "wrong", "rtt_ms", "texts", "text_tokens", "seconds", "dtype")
    }
    return {"benchmark": "load", **measured, "settings": {**settings, "limits": limits}, "summary": summary, **summary}


def _check(args: argparse.Namespace) -> None:
    bounds = {
        "devices": (1, MAX_DEVICES),
        "seconds": (0.1, MAX_SECONDS),
        "rate": (1e-3, 1e3),
        "spans": (1, 256),
        "wrong": (0.0, 1.0),
        "rtt_ms": (0.0, 10_000.0),
        "texts": (1, 1000),
        "text_tokens": (2, 4096),
    }
    for name, (least, most) in bounds.items():
        if not least <= getattr(args, name) <= most:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)} is outside [{least}, {most}]")
    if args.text_tokens <= args.spans:
        raise ConfigError(f"--text-tokens: {args.text_tokens} hold no span of {args.spans} and its verdict; raise it")
    for limit in args.limit:
        if not limit.partition("=")[2].replace(".", "", 1).isdigit():
            raise ConfigError(f"--limit: {limit!r}; give NAME=NUMBER, such as step_tokens=320")


async def _load(
    args: argparse.Namespace, service: CloudProcess, manifest: ModelManifest, prompts: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    process, observed = psutil.Process(service.pid), Observed()
    habits = Habits(
        digest=manifest.tokenizer_digest,
        spans=args.spans,
        rate=args.rate,
        wrong=args.wrong,
        vocabulary=manifest.vocabulary_size,
        one_way_s=args.rtt_ms / 2e3,
    )
    channels = [
        grpc.aio.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(min(CHANNELS, args.devices))
    ]
    texts: list[Recorded] = [
        await record(channels[0], manifest.tokenizer_digest, prompt, args.text_tokens) for prompt in prompts
    ]
    rss_mib = [_rss_mib(process)]
    devices = [Device(number, channels[number % len(channels)], texts, habits) for number in range(args.devices)]
    began, cpu_began = time.perf_counter(), sum(process.cpu_times()[:2])
    working = [asyncio.create_task(device.work(observed)) for device in devices]
    for _ in range(LOOKS):
        await asyncio.sleep(args.seconds / LOOKS)
        rss_mib.append(_rss_mib(process))
    seconds, cpu_s = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu_began
    for task in working:
        task.cancel()
    outcomes = await asyncio.gather(*working, return_exceptions=True)
    for outcome in outcomes:
        if not isinstance(outcome, asyncio.CancelledError):
            observed.errors[type(outcome).__name__] += 1
    await asyncio.gather(*(channel.close() for channel in channels))
    return {
        "devices": args.devices,
        "verifications": len(observed.latency_ms),
        "verifications_per_s": rounded(len(observed.latency_ms) / seconds),
        "committed_tokens_per_s": rounded(observed.committed / seconds),
        "committed_tokens_per_cloud_s": rounded(observed.committed / cpu_s) if cpu_s else None,
        "latency_ms": _percentiles(observed.latency_ms),
        "opening_ms": _percentiles(observed.opening_ms),
        "late_spans": observed.late,
        "errors": sum(observed.errors.values()),
        "errors_by_kind": dict(observed.errors),
        "refused": observed.refused,
        "rss_mib": {"start": rss_mib[0], "peak": max(rss_mib), "end": rss_mib[-1]},
    }


def _percentiles(times_ms: Sequence[float]) -> dict[str, float | None]:
    if not times_ms:
        return {"p50": None, "p95": None, "p99": None}
    return {f"p{share}": rounded(float(np.percentile(times_ms, share)), 1) for share in (50, 95, 99)}


def _rss_mib(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 2**20, 1)
