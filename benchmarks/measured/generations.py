"""The generations of a run: a cloud, a link and a client for each strategy, prompt by prompt."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

from benchmarks.kit.processes import SERVE, ServerFailed, cloud_server
from benchmarks.kit.prompts import Prompt
from benchmarks.kit.statistics import rounded
from benchmarks.kit.work_file import Key, WorkFile
from benchmarks.measured.assisted import ASSISTED, Assisted
from benchmarks.measured.link_process import LinkProcess, Traffic, link_process
from benchmarks.measured.llama_server import LLAMA_SERVER, LlamaRunner, llama_server
from benchmarks.measured.plan import FOREIGN, Cores, Plan
from benchmarks.measured.runners import Device, Measured, Request, Runner
from benchmarks.strategies.other_pairs import Asked, measured_strategy
from edge_client import EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings

WARM_UP = "Say hello, then count from one to ten."
WARM_UP_TOKENS = 32
LENIENT_SERVER = ("benchmarks.strategies.lenient_server", "--within-nats")
MAX_FAILURES = 3  # consecutive failures that end a run
# The service that a strategy speaks to: None is the usual one, a number the cross-entropy that a lenient one accepts.
Cloud = float | str | None
QUIET_MS = 20.0  # a link without a byte for a round trip and this time is quiet
MAX_SETTLING = 20  # largest number of waits for a quiet link


def measure(plan: Plan, missing: Sequence[Key], work: WorkFile) -> list[dict[str, Any]]:
    """Make the missing generations, add them to `work`, and return those that failed, for the next run to try again."""
    cores = Cores.allowed()
    with ExitStack() as stack:
        links = {
            cloud: stack.enter_context(_cloud_and_link(plan, cores, cloud))
            for cloud in dict.fromkeys(_cloud(name) for _, name, _ in missing)
        }
        stack.enter_context(_on_core(cores.device))
        return asyncio.run(_Run(plan, links, cores).make(missing, work))


def _cloud(name: str) -> Cloud:
    if name in FOREIGN:
        return LLAMA_SERVER if name == LLAMA_SERVER else None
    return measured_strategy(name).lenient_nats


@contextmanager
def _cloud_and_link(plan: Plan, cores: Cores, cloud: Cloud) -> Iterator[LinkProcess]:
    """Run a cloud and its link. All clouds share one core, because only one of them is busy at a time."""
    with (
        _server(plan, cores, cloud) as address,
        link_process(plan.profile, address, seed=plan.seed, cores=cores.every) as link,
    ):
        yield link


@contextmanager
def _server(plan: Plan, cores: Cores, cloud: Cloud) -> Iterator[str]:
    if cloud == LLAMA_SERVER:
        assert plan.llama is not None  # `plan_from` sees to it
        with llama_server(plan.llama, (cores.cloud,)) as address:
            yield address
        return
    # Each strategy reads its prompt again, although another has just read the same one.
    arguments = ("--threads", "1", "--dtype", plan.dtype, "--no-kv-sharing")
    program = SERVE if cloud is None else (*LENIENT_SERVER, str(cloud))
    with cloud_server(plan.pair, arguments=arguments, cores=(cores.cloud,), program=program) as (address, _):
        yield address


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """Pin this process, and the threads that it starts in the block, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Run:
    """Makes the generations, with a runner for each strategy, and the link from the runner to its cloud."""

    def __init__(self, plan: Plan, links: Mapping[Cloud, LinkProcess], cores: Cores) -> None:
        """Prepare a run. `links` lead to the clouds."""
        self._plan = plan
        self._links = links
        self._cores = cores

    async def make(self, missing: Sequence[Key], work: WorkFile) -> list[dict[str, Any]]:
        prompts = {prompt.id: prompt for prompt in self._plan.prompts}
        failed: list[dict[str, Any]] = []
        failures_in_a_row = 0
        async with AsyncExitStack() as stack:
            runners = {}
            for name in dict.fromkeys(name for _, name, _ in missing):
                runners[name] = self._runner(name)
                stack.push_async_callback(runners[name].aclose)
                await self._generate(runners[name], self._link(name), WARM_UP, self._plan.seed, WARM_UP_TOKENS)
            for done, (prompt_id, name, repeat) in enumerate(missing, start=1):
                row = await self._row(runners[name], prompts[prompt_id], name, repeat)
                failures_in_a_row = 0 if row["error"] is None else failures_in_a_row + 1
                if row["error"] is None:
                    work.add(row)
                else:
                    failed.append(row)
                if failures_in_a_row == MAX_FAILURES:
                    raise ServerFailed(f"{MAX_FAILURES} generations in a row failed; the last error: {row['error']}")
                print(f"{done:4} of {len(missing)}  {_line(row)}", flush=True)
        return failed

    def _runner(self, name: str) -> Runner:
        if name == ASSISTED:
            return Assisted(self._plan.pair, self._plan.dtype, self._cores.every)
        if name == LLAMA_SERVER:
            return LlamaRunner(self._plan.pair, self._link(name).address)
        config = EdgeConfig(
            pair=Asked.of(name, self._plan.pair).pair,
            closing_audit=True,  # to count the cloud's work after the end of the text, too
            cloud=CloudSettings(address=self._link(name).address),
            device=DeviceSettings(
                threads=1,
                allow_spinning=False,
                conditioning=self._plan.conditioning,
                encodings_mib=0,  # a repeat asks for its encoding again
            ),
        )
        return Device(measured_strategy(name), config)

    def _link(self, name: str) -> LinkProcess:
        return self._links[_cloud(name)]

    async def _row(self, runner: Runner, prompt: Prompt, name: str, repeat: int) -> dict[str, Any]:
        measured, traffic = await self._generate(
            runner, self._link(name), prompt.text, self._plan.seed + repeat, self._plan.max_new_tokens
        )
        if name == ASSISTED:
            traffic = Traffic()  # it uses no link; bytes on it are keep-alives of other clients
        return row_of(prompt, name, repeat, measured, traffic)

    async def _generate(
        self, runner: Runner, link: LinkProcess, text: str, seed: int, max_new_tokens: int
    ) -> tuple[Measured, Traffic]:
        plan = self._plan
        limit = min(max_new_tokens, plan.max_new_tokens)
        request = Request(runner.prepare(text), plan.temperature, seed, limit, warm=not plan.cold)
        before = await self._settled(link)
        measured = await runner.generate(request)
        cpu_ms = link.traffic().cpu_ms
        return measured, replace((await self._settled(link)).since(before), cpu_ms=cpu_ms - before.cpu_ms)

    async def _settled(self, link: LinkProcess) -> Traffic:
        """Return the link's counters once it is quiet, because acknowledgements and audits may follow a text."""
        traffic = link.traffic()
        for _ in range(MAX_SETTLING):
            await asyncio.sleep((self._plan.profile.rtt_ms + QUIET_MS) / 1e3)
            earlier, traffic = traffic, link.traffic()
            if (earlier.bytes_up, earlier.bytes_down) == (traffic.bytes_up, traffic.bytes_down):
                break
        return traffic


def row_of(prompt: Prompt, name: str, repeat: int, measured: Measured, traffic: Traffic) -> dict[str, Any]:
    """Return one generation as a row of the result; docs/benchmarks.md describes the fields."""
    stats = measured.stats
    timed = len(measured.token_ids) - measured.untimed_tokens
    return {
        "id": prompt.id,
        "category": prompt.category,
        "strategy": name,
        "repeat": repeat,
        "decode_tokens_per_s": rounded(1e3 * timed / stats.decode_ms, 4) if stats.decode_ms and timed else None,
        "cold_total_ms": None if stats.decode_ms is not None else rounded(stats.total_ms),
        "token_ids": list(measured.token_ids),
        "commit_ms": [round(at_ms, 2) for at_ms in measured.commit_ms],
        "stats": stats.to_json() | dict.fromkeys(measured.unmeasured),
        "costs": asdict(measured.costs) if measured.costs is not None else None,
        "readings": [[tokens, round(read_ms, 1)] for tokens, read_ms in measured.readings],
        "link_bytes_up": traffic.bytes_up,
        "link_bytes_down": traffic.bytes_down,
        "link_cpu_ms": round(traffic.cpu_ms, 3),
        "error": measured.error.message if measured.error is not None else None,
    }


def _line(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"{row['id']:20} {row['strategy']:12} failed: {row['error']}"
    speed = row["decode_tokens_per_s"]
    shown = f"{speed:8.2f} tokens/s" if speed is not None else f"{row['stats']['total_ms']:8.0f} ms"
    return f"{row['id']:20} {row['strategy']:12} {shown}"
