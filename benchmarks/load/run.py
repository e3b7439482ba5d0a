"""Many devices on one service: `python -m benchmarks load --pair NAME --devices N --seconds S`.

The service is a process of its own. Each device verifies texts that the cloud wrote before, with the tokens that the
pair's device model drafts along them. Its spans come at random times, `--rate` a second on average, whether or not the
service keeps up (open loop): a latency runs from the time at which a span was to be sent. The devices begin one after
the other, 200 a second, before the time begins. They share a process. With `--link` or `--rtt-ms` each has a link of
its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kit.processes import CloudProcess, cloud_server
from benchmarks.kit.provenance import provenance
from benchmarks.load.crowd import MAX_LINKED, Crowd, recorded_texts
from benchmarks.load.figure import latency_figure
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from link_emulator.command import chosen_profile

PROMPTS = Path(__file__).parents[1] / "prompt_sets" / "prose.jsonl"
MAX_DEVICES = 10_000
MAX_SECONDS = 3_600.0
MAX_PROMPT = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=16)
    add_common_arguments(parser)
    link = parser.add_mutually_exclusive_group()
    link.add_argument("--link", metavar="PROFILE", help="each device's link, by its profile's name or path")
    link.add_argument("--rtt-ms", type=float, default=0.0, help="a link with this round trip and nothing else")
    parser.add_argument("--figure", type=Path, help="a PNG of the latencies")
    parser.add_argument("--long-prompt", type=int, default=0, help="tokens of a prompt that comes in the middle")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", help="a setting of `limits`")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `capacity` has as well."""
    parser.add_argument("--pair", default="default")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.5, help="verifications per second of one device, on average")
    parser.add_argument("--spans", type=int, default=8, help="tokens of a span")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a prompt set: JSON lines of id, class, prompt")
    parser.add_argument("--texts", type=int, default=4, help="recorded texts that the devices share")
    parser.add_argument("--text-tokens", type=int, default=48, help="of each recorded text")
    parser.add_argument("--dtype", default="auto", help="of the cloud's model")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; raises ConfigError if an option is wrong."""
    check(args, {"devices": (1, MAX_DEVICES), "long_prompt": (0, MAX_PROMPT)})
    profile = chosen_profile(args.link, args.rtt_ms) if args.link or args.rtt_ms else None
    if profile is not None and args.devices > MAX_LINKED:
        raise ConfigError(f"--devices: {args.devices} with a link each; at most {MAX_LINKED}, or leave the link out")
    limits = _limits(args)
    measured = provenance()
    manifest = load_manifest(pair_folder(args.pair, "cloud"), role="cloud")
    with service_of(args, limits) as service:
        texts = recorded_texts(args.pair, service, args.prompts, args.texts, args.text_tokens)
        crowd = Crowd(service, texts, manifest.tokenizer_digest, spans=args.spans, rate=args.rate, profile=profile)
        prompt = [token_id for text in texts for token_id in (*text.prompt, *text.text)]
        prompt = (prompt * (args.long_prompt // len(prompt) + 1))[: args.long_prompt]
        observed, summary = asyncio.run(crowd.work(args.devices, args.seconds, long_prompt=prompt))
    if args.figure is not None:
        latency_figure(observed.latency_ms, args.devices).savefig(args.figure, dpi=150)
    names = ("devices", "link", "rtt_ms", "long_prompt")
    settings = settings_of(args) | {name: getattr(args, name) for name in names} | {"limits": limits}
    return {"benchmark": "load", **measured, "settings": settings, "summary": summary, **summary}


@contextmanager
def service_of(args: argparse.Namespace, limits: Mapping[str, Any]) -> Iterator[CloudProcess]:
    """Run a service with these settings of `limits`."""
    with TemporaryDirectory() as temporary:
        config = Path(temporary, "cloud.yaml")
        config.write_text(json.dumps({"dtype": args.dtype, "limits": limits}), encoding="utf-8")
        with cloud_server(args.pair, arguments=("--config", str(config))) as service:
            yield service


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the common options for the result."""
    names = ("pair", "seconds", "rate", "spans", "texts", "text_tokens", "dtype")
    return {name: getattr(args, name) for name in names} | {"prompts": args.prompts.name}


def check(args: argparse.Namespace, more: Mapping[str, tuple[float, float]]) -> None:
    """Raise ConfigError for a number outside its bounds; `more` has those of a command's own options."""
    bounds: dict[str, tuple[float, float]] = {
        **more,
        "seconds": (0.1, MAX_SECONDS),
        "rate": (1e-3, 1e3),
        "spans": (1, 256),
        "texts": (1, 1000),
        "text_tokens": (2, 4096),
    }
    for name, (least, most) in bounds.items():
        if not least <= getattr(args, name) <= most:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)} is outside [{least}, {most}]")
    if args.text_tokens <= args.spans:
        raise ConfigError(f"--text-tokens: {args.text_tokens} hold no span of {args.spans} and its verdict; raise it")


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    for limit in args.limit:
        if not limit.partition("=")[2].replace(".", "", 1).isdigit():
            raise ConfigError(f"--limit: {limit!r}; give NAME=NUMBER, such as step_tokens=320")
    return {name: json.loads(number) for name, _, number in (limit.partition("=") for limit in args.limit)}
