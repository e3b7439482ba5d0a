"""The devices of a load: they share a process, and verify the same recorded texts at times of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil

from benchmarks.kit.processes import CloudProcess
from benchmarks.kit.prompts import read_prompts
from benchmarks.kit.statistics import rounded
from benchmarks.load.device import ARRIVALS_PER_S, Device, Habits, Observed, Recorded, open_and_close, write
from benchmarks.traces.record import device_model
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from edge_client.text import ChatTemplate, Tokenizer
from link_emulator import LinkProxy, Profile

CHANNELS = 8  # connections that devices without a link share
MAX_LINKED = 512  # devices with a link and a connection each
LOOKS = 20  # at the service's memory


def recorded_texts(pair: str, service: CloudProcess, prompts: Path, count: int, tokens: int) -> list[Recorded]:
    """Let the cloud write a text after each of the first prompts, and the device's model draft along it."""
    folder = pair_folder(pair, "edge")
    manifest = load_manifest(folder, role="edge")
    tokenizer = Tokenizer.load(folder, manifest)
    template = ChatTemplate.load(folder, tokenizer)
    asked = [
        tuple(tokenizer.encode(template.render([{"role": "user", "content": prompt.text}])))
        for prompt in read_prompts(prompts)[:count]
    ]

    async def record() -> list[Recorded]:
        async with _channel(service.address) as channel:
            texts = [await write(channel, manifest.tokenizer_digest, prompt, tokens) for prompt in asked]
        model, found = device_model(pair, manifest), []
        try:
            for prompt, text in zip(asked, texts, strict=True):
                sequence = model.new_sequence()
                steps = [int(step.logits.argmax()) async for step in sequence.read((*prompt, *text[:-1]))]
                sequence.close()
                found.append(Recorded(prompt, text, tuple(steps[len(prompt) - 1 :])))
        finally:
            model.close()
        return found

    return asyncio.run(record())


class Crowd:
    """Devices of one service."""

    def __init__(
        self,
        service: CloudProcess,
        texts: Sequence[Recorded],
        digest: str,
        *,
        spans: int,
        rate: float,
        profile: Profile | None = None,
    ) -> None:
        """Let devices verify spans of `spans` tokens, `rate` a second each, over links of a profile if one is given."""
        self._service = service
        self._texts = texts
        self._habits = Habits(digest, spans, rate)
        self._profile = profile

    async def work(
        self, devices: int, seconds: float, *, long_prompt: Sequence[int] = ()
    ) -> tuple[Observed, dict[str, Any]]:
        """Let some devices work for some time; return what they saw, and its summary.

        In the middle of that time a further device may come with a long prompt.
        """
        process, observed = psutil.Process(self._service.pid), Observed()
        rss_mib = [_rss_mib(process)]
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(self._connection(number))
                for number in range(devices if self._profile else min(CHANNELS, devices))
            ]
            crowd = [
                Device(number, channels[number % len(channels)], self._texts, self._habits) for number in range(devices)
            ]
            working = [asyncio.create_task(device.work(observed)) for device in crowd]
            await asyncio.sleep(devices / ARRIVALS_PER_S)
            observed.begin()
            began, cpu_began = time.perf_counter(), sum(process.cpu_times()[:2])
            newcomer: Newcomer | None = None
            for look in range(LOOKS):
                if long_prompt and look == LOOKS // 2:
                    newcomer = Newcomer(observed)
                    working.append(asyncio.create_task(newcomer.read(channels[0], self._habits.digest, long_prompt)))
                await asyncio.sleep(seconds / LOOKS)
                rss_mib.append(_rss_mib(process))
            took_s, cpu_s = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu_began
            for task in working:
                task.cancel()
            for outcome in await asyncio.gather(*working, return_exceptions=True):
                if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                    observed.errors[type(outcome).__name__] += 1
        return observed, {
            **({"long_prompt": newcomer.summary(len(long_prompt))} if newcomer else {}),
            "devices": devices,
            "verifications": len(observed.latency_ms),
            "verifications_per_s": rounded(len(observed.latency_ms) / took_s),
            "committed_tokens_per_s": rounded(observed.committed / took_s),
            "committed_tokens_per_cloud_s": rounded(observed.committed / cpu_s) if cpu_s else None,
            "latency_ms": _percentiles(observed.latency_ms),
            "opening_ms": _percentiles(observed.opening_ms),
            "late_spans": observed.late,
            "errors": sum(observed.errors.values()),
            "errors_by_kind": dict(observed.errors),
            "refused": observed.refused,
            "cut": observed.cut,
            "rss_mib": {"start": rss_mib[0], "peak": max(rss_mib), "end": rss_mib[-1]},
        }

    @asynccontextmanager
    async def _connection(self, number: int) -> AsyncIterator[grpc.aio.Channel]:
        address = self._service.address
        async with AsyncExitStack() as stack:
            if self._profile is not None:
                proxy = LinkProxy(self._profile, to=address, seed=number)
                address = (await stack.enter_async_context(proxy)).address
            yield await stack.enter_async_context(_channel(address))


class Newcomer:
    """A device whose prompt is long, and the latencies of the others before and while it is read."""

    def __init__(self, observed: Observed) -> None:
        self._latency_ms = observed.latency_ms
        self._first = len(self._latency_ms)
        self._last: int | None = None
        self._read_s: float | None = None

    async def read(self, channel: grpc.aio.Channel, digest: str, prompt: Sequence[int]) -> None:
        """Let the service read the prompt."""
        began = time.perf_counter()
        await open_and_close(channel, digest, prompt)
        self._read_s, self._last = time.perf_counter() - began, len(self._latency_ms)

    def summary(self, tokens: int) -> dict[str, Any]:
        """Return the latencies; `read_s` is None if the time was up before the prompt was read."""
        before, during = self._latency_ms[: self._first], self._latency_ms[self._first : self._last]
        return {
            "tokens": tokens,
            "read_s": None if self._read_s is None else rounded(self._read_s, 2),
            "before_ms": _percentiles(before),
            "during_ms": _percentiles(during),
            "verifications": {"before": len(before), "during": len(during)},
        }


def _channel(address: str) -> grpc.aio.Channel:
    """Return a channel with a connection of its own."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def _percentiles(times_ms: Sequence[float]) -> dict[str, float | None]:
    if not times_ms:
        return {"p50": None, "p95": None, "p99": None}
    return {f"p{share}": rounded(float(np.percentile(times_ms, share)), 1) for share in (50, 95, 99)}


def _rss_mib(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 2**20, 1)
