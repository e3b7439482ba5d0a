"""Right answers of the device alone: in mode `edge`, and in `conditioned` with the encoding of the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.conditioning.texts import Asked
from benchmarks.kit.processes import CloudProcess
from benchmarks.kit.statistics import interval, rounded
from benchmarks.kit.work_file import WorkFile
from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.types import Mode
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings

_DEADLINE_S = 1_800.0  # of one answer


def score(
    edge: ModelManifest, prompts: Sequence[Asked], *, tokens: int, threads: int, service: CloudProcess, work: WorkFile
) -> dict[str, Any]:
    """Write an answer to each prompt that has right ones, in each mode; return the share that is right, by suite."""
    modes = (Mode.EDGE, Mode.CONDITIONED) if edge.projector is not None else (Mode.EDGE,)
    scored = [each for each in prompts if each.task.score is not None]
    asyncio.run(_write(edge, modes, scored, tokens, threads, service, work))
    found: dict[str, Any] = {}
    for suite in dict.fromkeys(each.suite for each in scored):
        for mode in modes:
            rows = [work.rows[each.id, _key(edge, mode), 0] for each in scored if each.suite == suite]
            right = np.array([row["right"] for row in rows])

            def share(drawn: Any, right: Any = right) -> float:
                return float(right[drawn].mean())

            found.setdefault(suite, {})[str(mode)] = {
                "answers": len(rows),
                "right": int(right.sum()),
                "share_95": interval(len(rows), share),
                "tokens_per_s": rounded(sum(row["tokens"] for row in rows) / sum(row["seconds"] for row in rows), 1),
                "round_trips": rounded(sum(row["round_trips"] for row in rows) / len(rows), 2),
            }
    return found


async def _write(
    edge: ModelManifest,
    modes: Sequence[Mode],
    prompts: Sequence[Asked],
    tokens: int,
    threads: int,
    service: CloudProcess,
    work: WorkFile,
) -> None:
    config = EdgeConfig(
        pair=edge.pair,
        cloud=CloudSettings(address=service.address),
        device=DeviceSettings(threads=threads, allow_spinning=False),
    )
    async with EdgeClient(config) as client:
        for each in prompts:
            for mode in modes:
                if work.missing([(each.id, _key(edge, mode), 0)]):
                    written = await client.generate(
                        each.task.message, mode=mode, max_new_tokens=tokens, timeout=_DEADLINE_S
                    )
                    assert each.task.score is not None
                    stats = written.stats
                    work.add(
                        {
                            "id": each.id,
                            "strategy": _key(edge, mode),
                            "repeat": 0,
                            "right": each.task.score(written.text).passed,
                            "tokens": stats.completion_tokens,
                            "seconds": stats.total_ms / 1e3,
                            "round_trips": stats.round_trips,
                        }
                    )


def _key(edge: ModelManifest, mode: Mode) -> str:
    return f"{mode} {edge.digest}"
