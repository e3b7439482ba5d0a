"""Texts that one service writes at the same time: `python -m benchmarks concurrent --writers cloud:1,exact:8,gated:8`.

A writer is a mode and the number of texts that it writes at once. The first one is the reference: the others are
compared with it, in their texts and in the cloud's processor time. All use one service, whose batches hold whatever
texts are there. With `cloud:1` the reference has each text to itself, token by token.

What a writer has finished is kept under `--work`, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, get_args

import psutil

from benchmarks.kit.digests import digest_of, digest_of_source
from benchmarks.kit.processes import CloudProcess, cloud_server
from benchmarks.kit.prompts import Prompt, humaneval, read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from benchmarks.kit.work_file import Key, WorkFile
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode
from cloud_supervisor.model.torch_model import Dtype
from edge_client import EdgeClient, EdgeConfig, Generation
from edge_client.config import CloudSettings, DeviceSettings

ROOT = Path(__file__).parents[2]
PROSE = ROOT / "benchmarks" / "prompt_sets" / "prose.jsonl"
MAX_AT_ONCE = 64
_DEADLINE_S = 3_600.0  # of one text


@dataclass(frozen=True, slots=True)
class Writer:
    """A mode, and the number of texts that it writes at once."""

    mode: Mode
    at_once: int

    @classmethod
    def named(cls, text: str) -> Self:
        """Read `MODE:NUMBER`; raises ConfigError."""
        mode, _, number = text.partition(":")
        if mode not in {each.value for each in Mode} or not number.isdigit() or not 1 <= int(number) <= MAX_AT_ONCE:
            modes = ", ".join(each.value for each in Mode)
            raise ConfigError(f"--writers: {text!r}; give MODE:NUMBER, of {modes}, and from 1 to {MAX_AT_ONCE}")
        return cls(Mode(mode), int(number))

    def __str__(self) -> str:
        return f"{self.mode}:{self.at_once}"


@dataclass(frozen=True, slots=True)
class Written:
    """The texts of a writer in the order of the prompts, and what they cost."""

    texts: tuple[tuple[int, ...], ...]
    seconds: float
    cloud_s: float  # processor time of the service
    round_trips: int

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Read what `asdict` made, and a file has kept."""
        fields = {name: row[name] for name in ("seconds", "cloud_s", "round_trips")}
        return cls(tuple(tuple(text) for text in row["texts"]), **fields)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(len(text) for text in self.texts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--dtypes", default="int8", help="of the cloud's model, one after the other")
    parser.add_argument("--writers", default="cloud:1,exact:8,gated:8", help="the first is the reference")
    parser.add_argument("--texts", type=int, default=24, help="of each kind: general prompts, and HumanEval's")
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--temperatures", default="0,0.7")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, help="of the cloud's model")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".cache" / "benchmarks", help="the folder of unfinished runs"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write all texts; raises ConfigError if an option is wrong."""
    writers = [Writer.named(text) for text in args.writers.split(",")]
    if len(set(writers)) < len(writers):
        raise ConfigError(f"--writers: {args.writers!r} names one twice; give each once")
    dtypes = args.dtypes.split(",")
    for dtype in dtypes:
        if dtype not in get_args(Dtype):
            raise ConfigError(f"--dtypes: {dtype!r} is none; choose from {', '.join(get_args(Dtype))}")
    for name in ("texts", "tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: {getattr(args, name)}; at least 1")
    try:
        temperatures = [float(each) for each in args.temperatures.split(",")]
    except ValueError:
        raise ConfigError(f"--temperatures: {args.temperatures!r}; give numbers with commas between them") from None
    measured = provenance()
    prompts = [*read_prompts(PROSE)[: args.texts]]
    prompts += [Prompt(problem.id, "code", problem.message) for problem in humaneval(0, args.texts)]
    work = WorkFile(args.work / f"{digest_of(_identity(args, prompts, measured))}.jsonl")
    summary: dict[str, Any] = {}
    for dtype in dtypes:
        found = {
            (case, writer): work.rows.get(_key(dtype, case, writer)) for case in temperatures for writer in writers
        }
        if None in found.values():
            arguments = ["--dtype", dtype, *(("--threads", str(args.threads)) if args.threads else ())]
            with cloud_server(args.pair, arguments=(*arguments, "--no-kv-sharing")) as service:
                for (case, writer), row in found.items():
                    if row is None:
                        key = dict(zip(("id", "strategy", "repeat"), _key(dtype, case, writer), strict=True))
                        work.add(key | asdict(asyncio.run(_write(args, service, writer, prompts, case))))
        for case in temperatures:
            written = {writer: Written.of_row(work.rows[_key(dtype, case, writer)]) for writer in writers}
            summary[_case(dtype, case)] = compared(prompts, written)
    settings = {name: getattr(args, name) for name in ("pair", "texts", "tokens", "seed", "threads")}
    settings |= {"dtypes": dtypes, "writers": [str(writer) for writer in writers], "temperatures": temperatures}
    return {"benchmark": "concurrent", **measured, "settings": settings, "summary": summary}


def _identity(args: argparse.Namespace, prompts: Sequence[Prompt], measured: dict[str, Any]) -> dict[str, Any]:
    """Return everything that a writer's texts and costs depend on."""
    manifests = [load_manifest(pair_folder(args.pair, role), role=role) for role in ("edge", "cloud")]
    return {
        "prompts": [asdict(prompt) for prompt in prompts],
        "asked": [args.tokens, args.seed, args.threads],
        "models": [manifest.model_dump(mode="json") for manifest in manifests],
        "source": digest_of_source(ROOT, __name__),
        "versions": measured["versions"],
        "machine": measured["machine"],
    }


def _case(dtype: str, temperature: float) -> str:
    return f"{dtype}, temperature {temperature:g}"


def _key(dtype: str, temperature: float, writer: Writer) -> Key:
    return _case(dtype, temperature), str(writer), 0


async def _write(
    args: argparse.Namespace, service: CloudProcess, writer: Writer, prompts: Sequence[Prompt], temperature: float
) -> Written:
    config = EdgeConfig(
        pair=args.pair,
        mode=writer.mode,
        closing_audit=True,  # to count the cloud's work after the end of a text, too
        cloud=CloudSettings(address=service.address),
        device=DeviceSettings(threads=1, allow_spinning=False),
    )
    places, process = asyncio.Semaphore(writer.at_once), psutil.Process(service.pid)
    async with EdgeClient(config) as client:

        async def text(prompt: Prompt) -> Generation:
            async with places:
                return await client.generate(
                    prompt.text,
                    temperature=temperature,
                    seed=args.seed,
                    max_new_tokens=args.tokens,
                    timeout=_DEADLINE_S,
                )

        began, cpu_began = time.perf_counter(), sum(process.cpu_times()[:2])
        generations = await asyncio.gather(*(text(prompt) for prompt in prompts))
    seconds, cloud_s = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu_began
    print(f"{writer}, temperature {temperature:g}: {seconds:.0f} s", flush=True)
    return Written(
        tuple(tuple(generation.token_ids) for generation in generations),
        seconds,
        cloud_s,
        sum(generation.stats.round_trips for generation in generations),
    )


def compared(prompts: Sequence[Prompt], written: dict[Writer, Written]) -> dict[str, Any]:
    """Return each writer's cost, and how many of its texts are those of the first."""
    reference = next(iter(written.values()))
    rows: dict[str, Any] = {}
    for writer, found in written.items():
        equal = [old == new for old, new in zip(reference.texts, found.texts, strict=True)]
        rows[str(writer)] = {
            "texts": len(equal),
            "equal_to_first": sum(equal),
            "different": [prompt.id for prompt, same in zip(prompts, equal, strict=True) if not same],
            "tokens": found.tokens,
            "tokens_per_s": rounded(found.tokens / found.seconds),
            "tokens_per_cloud_s": rounded(found.tokens / found.cloud_s),
            "over_first": rounded(found.tokens / found.cloud_s / (reference.tokens / reference.cloud_s)),
            "round_trips_per_100_tokens": rounded(100 * found.round_trips / found.tokens),
        }
    return rows
