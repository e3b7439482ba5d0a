"""The texts of the study: prompts that training never saw, and the large model's own answers to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.kit.processes import CloudProcess
from benchmarks.kit.work_file import WorkFile
from benchmarks.quality.task_suites import Task, tasks_of
from chaperone_common.types import Mode
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings

SUITES: Mapping[str, str] = {"humaneval": "humaneval", "reasoning": "reasoning", "general": "prose"}
WAYS: Mapping[str, float] = {"greedy": 0.0, "coupled at 0.8": 0.8}  # temperatures
_DEADLINE_S = 3_600.0  # of one answer


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt of a suite."""

    suite: str
    task: Task

    @property
    def id(self) -> str:
        """A name that no other prompt of the study has."""
        return f"{self.suite}/{self.task.id}"


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and the large model's answer."""

    id: str
    suite: str
    way: str
    seed: int  # of the noise that both models share
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def asked(suites: Iterable[str], count: int | None) -> list[Asked]:
    """Return the prompts of some suites, `count` of each or all; raises ConfigError."""
    return [Asked(suite, task) for suite in suites for task in tasks_of(SUITES[suite], count)]


def answers(
    pair: str, prompts: Sequence[Asked], *, tokens: int, seed: int, at_once: int, service: CloudProcess, work: WorkFile
) -> list[Answered]:
    """Let the large model answer all prompts in each way; what is in `work` is not written again."""
    asyncio.run(_answer(pair, prompts, tokens, seed, at_once, service, work))
    return [
        Answered(each.id, each.suite, way, row["seed"], tuple(row["prompt"]), tuple(row["answer"]))
        for each in prompts
        for way in WAYS
        for row in (work.rows[each.id, way, 0],)
    ]


async def _answer(
    pair: str, prompts: Sequence[Asked], tokens: int, seed: int, at_once: int, service: CloudProcess, work: WorkFile
) -> None:
    missing = work.missing((each.id, way, 0) for each in prompts for way in WAYS)
    by_id = {each.id: each for each in prompts}
    places = asyncio.Semaphore(at_once)
    config = EdgeConfig(pair=pair, mode=Mode.CLOUD, cloud=CloudSettings(address=service.address))
    async with EdgeClient(config) as client:

        async def write(id_: str, way: str) -> None:
            message = by_id[id_].task.message
            async with places:
                written = await client.generate(
                    message, temperature=WAYS[way], seed=seed, max_new_tokens=tokens, timeout=_DEADLINE_S
                )
            prompt = client.prepare(message).token_ids
            row = {"id": id_, "strategy": way, "repeat": 0, "seed": seed}
            work.add(row | {"prompt": list(prompt), "answer": list(written.token_ids)})

        await asyncio.gather(*(write(id_, way) for id_, way, _ in missing))
