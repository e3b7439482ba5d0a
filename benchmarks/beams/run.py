"""Beams against one text and against beams by the large model alone: `python -m benchmarks beams --out F.json`.

Device and cloud are two processes with a core each, and an emulated link is a third. For each prompt every way writes
in turn, and the order rotates. A way has its own client, which learns from its own texts and first writes a warm-up
that is discarded. The first way is the baseline of all ratios. Whole requests are timed, with the prompt.
Each finished text is written at once, so the same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks.beams.likelihood import DTYPE, logprobs
from benchmarks.beams.summary import summarise
from benchmarks.beams.ways import NAMES, Way
from benchmarks.beams.writing import Setting, key_of, write
from benchmarks.conditioning.texts import SUITES, asked
from benchmarks.kit.digests import digest_of, digest_of_source
from benchmarks.kit.processes import cloud_server
from benchmarks.kit.provenance import provenance
from benchmarks.kit.work_file import WorkFile
from benchmarks.measured.link_process import link_process
from benchmarks.measured.plan import Cores
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from link_emulator.command import chosen_profile

ROOT = Path(__file__).parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--ways", default="cloud-4,beams-4,beams-4-one,exact", help=f"the baseline first: {NAMES}")
    parser.add_argument("--suites", default="humaneval,general", help=f"separated by commas: {', '.join(SUITES)}")
    parser.add_argument("--tasks", type=int, help="prompts of each suite, spread evenly; default: all")
    parser.add_argument("--tokens", type=int, default=128, help="of a text, at most")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: beam search")
    parser.add_argument("--rtt-ms", default="0,100", help="round trips of the links, separated by commas")
    parser.add_argument("--dtype", default="int8", choices=("float32", "bfloat16", "int8"), help="of the service")
    parser.add_argument("--plain-dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of generate-K")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".cache" / "benchmarks", help="the folder of unfinished runs"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write, read and compare; raises ConfigError if an option is wrong."""
    measured = provenance()
    setting, suites = setting_of(args)
    links = [_milliseconds(text) for text in args.rtt_ms.split(",")]
    manifests = {role: load_manifest(pair_folder(args.pair, role), role=role).digest for role in ("edge", "cloud")}
    identity = {
        "models": manifests,
        "ways": [way.name for way in setting.ways],
        "prompts": [[each.id, each.task.message] for each in setting.prompts],
        "asked": [args.tokens, args.temperature, args.seed, args.dtype, args.plain_dtype],
        "source": digest_of_source(ROOT, "benchmarks.beams.writing"),
        "versions": measured["versions"],
        "machine": measured["machine"],
    }
    work = WorkFile(args.work / f"beams-{digest_of(identity)}.jsonl")
    cores = Cores.allowed()
    arguments = ("--threads", "1", "--dtype", args.dtype, "--no-kv-sharing")
    if any(work.missing(setting.keys(rtt_ms)) for rtt_ms in links):
        before = os.sched_getaffinity(0)
        with cloud_server(args.pair, arguments=arguments, cores=(cores.cloud,)) as service:
            for rtt_ms in links:
                profile = chosen_profile(None, rtt_ms)
                with link_process(profile, service.address, seed=args.seed, cores=cores.every) as link:
                    os.sched_setaffinity(0, {cores.device})
                    try:
                        write(setting, rtt_ms, link.address, work)
                    finally:
                        os.sched_setaffinity(0, before)
    keys = [key for rtt_ms in links for key in setting.keys(rtt_ms)]
    rows = [dict(work.rows[key]) for key in keys]
    for row, logprob in zip(rows, logprobs(args.pair, rows), strict=True):
        row["logprob"] = logprob
    summary = {
        suite: {
            f"{rtt_ms:g} ms": summarise(
                {
                    way.name: sorted(
                        (row for row in rows if (row["suite"], row["strategy"]) == (suite, key_of(way.name, rtt_ms))),
                        key=lambda row: str(row["id"]),
                    )
                    for way in setting.ways
                },
                setting.ways[0].name,
            )
            for rtt_ms in links
        }
        for suite in suites
    }
    settings = {name: getattr(args, name) for name in ("pair", "tasks", "tokens", "temperature", "dtype", "seed")}
    settings |= {
        "plain_dtype": args.plain_dtype,
        "likelihood_dtype": DTYPE,
        "ways": [way.name for way in setting.ways],
        "suites": suites,
        "rtt_ms": links,
        "models": manifests,
    }
    return {"benchmark": "beams", **measured, "settings": settings, "texts": rows, "summary": summary}


def setting_of(args: argparse.Namespace) -> tuple[Setting, list[str]]:
    """Return what all texts share, and the suites; raises ConfigError if an option is wrong."""
    suites = args.suites.split(",")
    if unknown := [suite for suite in suites if suite not in SUITES]:
        raise ConfigError(f"--suites: {', '.join(unknown)}: unknown; there are {', '.join(SUITES)}")
    names = args.ways.split(",")
    if len(set(names)) < len(names):
        raise ConfigError(f"--ways: {args.ways!r} names one twice; give each once")
    if args.tokens < 1:
        raise ConfigError(f"--tokens: {args.tokens}; at least 1")
    ways = tuple(map(Way.of, names))
    prompts = tuple(asked(suites, args.tasks))
    return Setting(args.pair, ways, prompts, args.tokens, args.temperature, args.seed, args.plain_dtype), suites


def _milliseconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--rtt-ms: {text!r} is no number of milliseconds") from None
