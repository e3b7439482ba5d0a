"""Text and speed of a device next to attackers: `python -m benchmarks attacks`.

The service is a process of its own on one core, with tokens and quotas. Device and attacker share the other cores, and
the attacker has the lowest priority there. In mode `cloud` the device mostly waits, so that the attacker has nearly all
of its core, and the speed is the service's. Each attack goes on while the device writes the same texts as before and
after it, and `malformed` until it has sent at least 10,000 messages. Speed is tokens over whole requests. The service's
memory is read before an attack, and some seconds after it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.attacks.attacker import Toll, attacker_process
from benchmarks.attacks.kinds import ATTACKS, HELD, MALFORMED
from benchmarks.kit.processes import CloudProcess, cloud_server
from benchmarks.kit.prompts import Prompt, read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from chaperone_common.errors import ConfigError
from cloud_supervisor.security.tokens import TokenFile
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings

PROMPTS = Path(__file__).parents[1] / "prompt_sets" / "prose.jsonl"
DEVICE, ATTACKER, LIMITED = "device", "attacker", "limited"  # tenants
CONFIG = f"""
quotas:
  tenants:
    {LIMITED}: {{max_sessions: 2, streams_per_minute: 60, positions_per_minute: 2000}}
"""


@dataclass(frozen=True, slots=True)
class Written:
    """A text, and its tokens per second."""

    token_ids: tuple[int, ...]
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Service:
    """The running service, and a token for each tenant."""

    process: CloudProcess
    tokens: dict[str, str]
    core: int
    rest: tuple[int, ...]  # cores of everything else

    @property
    def rss_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kinds", default=",".join(ATTACKS), help=f"attacks, of {', '.join(ATTACKS)}")
    parser.add_argument(
        "--prompts", type=Path, default=PROMPTS, help="a prompt set: JSON lines of id, class and prompt"
    )
    parser.add_argument("--first", type=int, default=3, help="only the first N prompts")
    parser.add_argument("--pair", default="default")
    parser.add_argument("--mode", choices=("cloud", "exact"), default="cloud", help="of the device")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--malformed", type=int, default=MALFORMED, help="messages that `malformed` sends at least")
    parser.add_argument("--settling-s", type=float, default=5.0, help="from the end of an attack to the look at memory")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Attack the service in every way; raise ConfigError if an option is wrong."""
    kinds = list(dict.fromkeys(args.kinds.split(",")))
    for kind in kinds:
        if kind not in ATTACKS:
            raise ConfigError(f"--kinds: {kind} is none; choose from {', '.join(ATTACKS)}")
    for name in ("first", "max_new_tokens", "malformed"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)}; at least 1")
    prompts = read_prompts(args.prompts)[: args.first]
    measured = provenance()
    rows = _attacked(args, kinds, prompts)
    return {
        "benchmark": "attacks",
        **measured,
        "settings": {
            "pair": args.pair,
            "mode": args.mode,
            "prompts": [prompt.id for prompt in prompts],
            "max_new_tokens": args.max_new_tokens,
            "held_streams": HELD,
            "settling_s": args.settling_s,
        },
        "summary": {row["attack"]: {name: value for name, value in row.items() if name != "attack"} for row in rows},
    }


def _attacked(args: argparse.Namespace, kinds: Sequence[str], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    cores = sorted(psutil.Process().cpu_affinity() or [0])
    core, rest = cores[-1], tuple(cores[:-1] or cores)
    with TemporaryDirectory() as folder:
        tokens_file, config_file = Path(folder, "tokens.json"), Path(folder, "cloud.yaml")
        tokens = {tenant: TokenFile.create(tokens_file, tenant) for tenant in (DEVICE, ATTACKER, LIMITED)}
        config_file.write_text(CONFIG, encoding="utf-8")
        arguments = ("--config", str(config_file), "--tokens", str(tokens_file), "--threads", "1")
        with cloud_server(args.pair, arguments=arguments, cores=(core,)) as process:
            psutil.Process().cpu_affinity(list(rest))
            try:
                token_file = Path(folder, "token")
                token_file.write_text(tokens[DEVICE], encoding="utf-8")
                service = Service(process, tokens, core, rest)
                return asyncio.run(_attack_in_turn(args, kinds, prompts, service, token_file))
            finally:
                psutil.Process().cpu_affinity(cores)


async def _attack_in_turn(
    args: argparse.Namespace, kinds: Sequence[str], prompts: Sequence[Prompt], service: Service, token_file: Path
) -> list[dict[str, Any]]:
    settings = EdgeConfig(
        pair=args.pair,
        mode=args.mode,
        cloud=CloudSettings(address=service.process.address, token_file=token_file),
        device=DeviceSettings(threads=len(service.rest), allow_spinning=False),
    )

    async with EdgeClient(settings) as client:

        async def write(prompt: Prompt) -> Written:
            began = time.perf_counter()
            text = await client.generate(prompt.text, max_new_tokens=args.max_new_tokens)
            return Written(text.token_ids, len(text.token_ids) / (time.perf_counter() - began))

        async def write_all() -> list[Written]:
            return [await write(prompt) for prompt in prompts]

        await write_all()  # warm: the client knows the costs, and the service has its buffers
        before = await write_all()
        rows = []
        for kind in kinds:
            rss_mib = service.rss_mib
            token = service.tokens[LIMITED if kind == "over-quota" else ATTACKER]
            attacked: list[Written] = []
            with attacker_process(
                kind,
                service.process.address,
                digest=client.manifest.tokenizer_digest,
                token=token,
                cores=service.rest,
            ) as attacker:
                began, earlier = time.perf_counter(), attacker.toll()
                while not attacked or (kind == "malformed" and attacker.toll().opened < args.malformed):
                    attacked += await write_all()
                seconds, toll = time.perf_counter() - began, attacker.toll()
            await asyncio.sleep(args.settling_s)
            rss_after_mib = service.rss_mib
            after = await write_all()
            rows.append(
                {
                    "attack": kind,
                    **_compared(before, attacked, after),
                    "rss_mib": [rounded(rss_mib, 1), rounded(rss_after_mib, 1)],
                    "rss_ratio": rounded(rss_after_mib / rss_mib),
                    **_attacker(toll, earlier, seconds),
                }
            )
            print(rows[-1], flush=True)
            before = after
        return rows


def _compared(before: Sequence[Written], attacked: Sequence[Written], after: Sequence[Written]) -> dict[str, Any]:
    """Compare the texts under attack with the same ones before and after it; a ratio is the median over prompts."""
    prompts = len(before)
    quiet = [(first.tokens_per_s + last.tokens_per_s) / 2 for first, last in zip(before, after, strict=True)]
    ratios = [text.tokens_per_s / quiet[index % prompts] for index, text in enumerate(attacked)]
    return {
        "texts": len(attacked),
        "equal_texts": sum(text.token_ids == before[index % prompts].token_ids for index, text in enumerate(attacked)),
        "tokens_per_s": rounded(statistics.median(text.tokens_per_s for text in attacked)),
        "quiet_tokens_per_s": rounded(statistics.median(quiet)),
        "ratio": rounded(statistics.median(ratios)),
        "least_ratio": rounded(min(ratios)),
    }


def _attacker(toll: Toll, earlier: Toll, seconds: float) -> dict[str, Any]:
    return {
        "attacker_streams": toll.opened,
        "attacker_streams_per_s": rounded((toll.opened - earlier.opened) / seconds, 1),
        "attacker_endings": toll.endings,
    }
