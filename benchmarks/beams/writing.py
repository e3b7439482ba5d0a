"""The texts of the study: each prompt in each way, interleaved, over one link after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.beams.plain_generate import PlainGenerate
from benchmarks.beams.ways import Way
from benchmarks.conditioning.texts import Asked
from benchmarks.kit.work_file import Key, WorkFile
from benchmarks.measured.plan import Cores, rotated
from chaperone_common.stats import EnergyModel
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings

WARM_UP = "Say hello, then count from one to ten."
_WARM_UP_TOKENS = 24
_DEADLINE_S = 1_800.0  # of one text


@dataclass(frozen=True, slots=True)
class Setting:
    """Models, prompts, ways and sampling of a run."""

    pair: str
    ways: tuple[Way, ...]
    prompts: tuple[Asked, ...]
    tokens: int
    temperature: float
    seed: int
    plain_dtype: str  # of `generate-K`

    def keys(self, rtt_ms: float) -> list[Key]:
        """Return the names of all texts over one link, in the order in which they are written."""
        return [
            (each.id, key_of(name, rtt_ms), 0)
            for turn, each in enumerate(self.prompts)
            for name in rotated([way.name for way in self.ways], turn)
        ]


def key_of(way: str, rtt_ms: float) -> str:
    """Return the name of a way over a link."""
    return f"{way} at {rtt_ms:g} ms"


def write(setting: Setting, rtt_ms: float, address: str, work: WorkFile) -> None:
    """Write the texts over one link that `work` does not have."""
    missing = work.missing(setting.keys(rtt_ms))
    if missing:
        asyncio.run(_write(setting, rtt_ms, address, missing, work))


async def _write(setting: Setting, rtt_ms: float, address: str, missing: Sequence[Key], work: WorkFile) -> None:
    prompts = {each.id: each for each in setting.prompts}
    ways = {key_of(way.name, rtt_ms): way for way in setting.ways}
    async with AsyncExitStack() as stack:
        writers = {}
        for key in dict.fromkeys(strategy for _, strategy, _ in missing):
            writers[key] = await _writer(setting, ways[key], address, stack)
            await writers[key].write(WARM_UP, _WARM_UP_TOKENS)
        for done, (id_, key, _) in enumerate(missing, start=1):
            each = prompts[id_]
            row = await writers[key].write(each.task.message, setting.tokens)
            right = each.task.score(row.pop("text")).passed if each.task.score is not None else None
            work.add({"id": id_, "suite": each.suite, "strategy": key, "repeat": 0, "right": right, **row})
            speed = len(row["token_ids"]) / row["seconds"]
            print(f"{done:4} of {len(missing)}  {id_:24} {key:24} {speed:6.2f} tokens/s", flush=True)


async def _writer(setting: Setting, way: Way, address: str, stack: AsyncExitStack) -> _Device | _Plain:
    # No way learns from another's texts. The tokenizer of `generate` is that of a client that connects to nothing.
    client = await stack.enter_async_context(
        EdgeClient(
            EdgeConfig(
                pair=setting.pair,
                cloud=CloudSettings(address=address),
                device=DeviceSettings(threads=1, allow_spinning=False),
            )
        )
    )
    if way.mode is not None:
        return _Device(client, way, setting)
    plain = PlainGenerate(setting.pair, setting.plain_dtype, (Cores.allowed().cloud,))
    stack.callback(plain.close)
    return _Plain(plain, client, way, setting)


class _Device:
    def __init__(self, client: EdgeClient, way: Way, setting: Setting) -> None:
        self._client, self._way, self._setting = client, way, setting

    async def write(self, message: str, tokens: int) -> dict[str, Any]:
        setting = self._setting
        found = await self._client.generate(
            message,
            temperature=setting.temperature,
            seed=setting.seed,
            max_new_tokens=tokens,
            timeout=_DEADLINE_S,
            **self._way.parameters,
        )
        stats = found.stats
        return {
            "text": found.text,
            "prompt_token_ids": list(found.prompt_token_ids),
            "token_ids": list(found.token_ids),
            "seconds": stats.total_ms / 1e3,
            "energy_j": stats.energy_j,
            "edge_ms": stats.edge_compute_ms,
            "cloud_ms": stats.cloud_compute_ms,
            "round_trips": stats.round_trips + stats.hidden_round_trips,
            "bytes_up": stats.bytes_up,
            "bytes_down": stats.bytes_down,
            "verified_tokens": stats.verified_tokens,
        }


class _Plain:
    def __init__(self, plain: PlainGenerate, client: EdgeClient, way: Way, setting: Setting) -> None:
        self._plain, self._client, self._way, self._setting = plain, client, way, setting

    async def write(self, message: str, tokens: int) -> dict[str, Any]:
        prompt = self._client.prepare(message).token_ids
        found = await asyncio.to_thread(
            self._plain.generate,
            prompt_token_ids=list(prompt),
            num_beams=self._way.num_beams,
            temperature=self._setting.temperature,
            seed=self._setting.seed,
            max_new_tokens=tokens,
        )
        seconds = found["seconds"]
        cloud_ms = seconds * 1e3
        energy_j = EnergyModel().joules(device_ms=0.0, cloud_ms=cloud_ms, radio_ms=0.0, bytes_up=0, bytes_down=0)
        return {
            "text": self._client.tokenizer.decode(found["token_ids"]),
            "prompt_token_ids": list(prompt),
            "token_ids": found["token_ids"],
            "seconds": seconds,
            "energy_j": energy_j,
            "edge_ms": 0.0,
            "cloud_ms": cloud_ms,
            "round_trips": 0,
            "bytes_up": 0,
            "bytes_down": 0,
            "verified_tokens": 0,
        }
