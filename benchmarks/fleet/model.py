"""Parts of a fleet: demands of generations, costs of the cloud's steps, devices and arrivals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.cloud_profile.run import CloudProfile
from chaperone_common.errors import ConfigError
from chaperone_common.stats import GenerationStats
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.scheduling.scheduler import Scheduler

CONTEXT_TOKENS = 32_768

_LIMITS = LimitsConfig()
# (sequences, tokens in all) -> milliseconds of a forward
StepTime = Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Segment:
    """Device work, and the request that follows it; `forwards` are the tokens of each of its steps in the cloud.

    The first step is a verification; in the others the cloud writes on its own. A hidden request overlaps with the
    device work of the next segment; the generation continues when both are done.
    """

    device_ms: float
    forwards: tuple[int, ...]
    hidden: bool


@dataclass(frozen=True, slots=True)
class Demand:
    """Demand of a generation of one strategy: means, with lengths drawn around them.

    The prompt is read from the start of a generation on, while the device drafts. `length_variation` is the coefficient
    of variation of a generation's length, which is lognormal and scales everything but the prompt. Raises ConfigError.
    """

    name: str
    completion_tokens: float
    round_trips: float = 0.0
    hidden_round_trips: float = 0.0
    forwards_per_request: float = 1.0  # more than one in takeovers
    tokens_per_forward: float = 1.0
    device_ms: float = 0.0  # on a device of speed 1
    prompt_tokens: float = 0.0
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    length_variation: float = 0.0

    def __post_init__(self) -> None:
        least = {"completion_tokens": 1.0, "forwards_per_request": 1.0, "tokens_per_forward": 1.0}
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not least.get(field.name, 0.0) <= value < math.inf:
                raise ConfigError(f"demand.{field.name}: {value}; give {least.get(field.name, 0.0):g} or more")

    @classmethod
    def from_stats(cls, name: str, rows: Sequence[GenerationStats]) -> Demand:
        """Return the means of measured or simulated generations.

        No counter has refused drafts, so a forward counts with the tokens that it produced.
        """
        if not rows:
            raise ConfigError(f"demand {name}: no generation to take it from")
        tokens = [float(row.completion_tokens) for row in rows]
        requests = fmean(row.round_trips + row.hidden_round_trips for row in rows)
        writes = fmean(row.takeover_tokens for row in rows)
        judged = fmean(row.verified_tokens + row.overridden_tokens + row.bonus_tokens for row in rows)
        forwards = requests + writes
        return cls(
            name=name,
            completion_tokens=max(1.0, fmean(tokens)),
            round_trips=fmean(row.round_trips for row in rows),
            hidden_round_trips=fmean(row.hidden_round_trips for row in rows),
            forwards_per_request=max(1.0, forwards / requests) if requests else 1.0,
            tokens_per_forward=max(1.0, (judged + writes) / forwards) if forwards else 1.0,
            device_ms=fmean(row.edge_compute_ms for row in rows),
            prompt_tokens=fmean(row.prompt_tokens for row in rows),
            bytes_up=fmean(row.bytes_up for row in rows),
            bytes_down=fmean(row.bytes_down for row in rows),
            length_variation=float(np.std(tokens) / np.mean(tokens)) if fmean(tokens) else 0.0,
        )

    @property
    def requests(self) -> float:
        """Mean number of requests of a generation."""
        return self.round_trips + self.hidden_round_trips

    def unloaded_ms(self, rtt_ms: float, step: StepTime) -> float:
        """Return the approximate duration of a generation on an idle cloud."""
        forwards = self.requests * self.forwards_per_request * step(1, round(self.tokens_per_forward))
        prompt = step(1, round(self.prompt_tokens)) if self.requests and self.prompt_tokens else 0.0
        return self.device_ms + self.round_trips * rtt_ms + forwards + prompt

    def draw_length(self, rng: np.random.Generator) -> float:
        """Draw a factor of mean 1."""
        if not self.length_variation:
            return 1.0
        variance = math.log1p(self.length_variation**2)
        return float(rng.lognormal(-variance / 2, math.sqrt(variance)))

    def segments(self, length: float, rng: np.random.Generator) -> Iterator[Segment]:
        """Draw one generation; counts are rounded at random, so that their means are kept."""
        waits = _rounded(self.round_trips * length, rng)
        hides = _rounded(self.hidden_round_trips * length, rng)
        requests = max(waits + hides, 1 if self.requests else 0)
        if requests == 0:
            yield Segment(self.device_ms * length, (), hidden=False)
            return
        hidden = rng.permutation(requests) < hides
        for index in range(requests):
            count = max(1, _rounded(self.forwards_per_request, rng))
            forwards = (max(1, _rounded(self.tokens_per_forward, rng)),) * count
            device_ms = self.device_ms * length / requests
            yield Segment(device_ms, forwards, bool(hidden[index]))


def _rounded(mean: float, rng: np.random.Generator) -> int:
    whole = math.floor(mean)
    return whole + (mean > whole and rng.random() < mean - whole)


def load_demands(path: Path) -> list[Demand]:
    """Read `Demand`s: a list of objects, or the generations of a benchmark's result, one `Demand` per strategy.

    Generations that failed are left out, and strategies that do not separate the device's work from the cloud's. Raises
    ConfigError.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, list):
            return [Demand(**row) for row in data]
        rows: dict[str, list[GenerationStats]] = {}
        for generation in data["generations"]:
            if generation["error"] is not None or generation["stats"]["edge_compute_ms"] is None:
                continue
            rows.setdefault(generation["strategy"], []).append(GenerationStats(**generation["stats"]))
        return [Demand.from_stats(name, stats) for name, stats in rows.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: no demands in it ({error}); give a list of them, or a result of `python -m benchmarks run`"
        ) from None


def affine_step(base_ms: float, ms_per_token: float) -> StepTime:
    """Return an assumption in place of a profile: a constant per forward, and a constant per token in it."""
    return lambda _batch, tokens: base_ms + ms_per_token * tokens


def profiled_step(profile: CloudProfile, shape: str, context: int) -> StepTime:
    """Return step times from measured rows; a mixed batch counts as one of equal spans."""
    known: dict[tuple[int, int], float] = {}

    def step_ms(batch: int, tokens: int) -> float:
        key = batch, math.ceil(tokens / batch)
        if key not in known:
            known[key] = profile.step_ms(shape, tokens=key[1], batch=batch, context=context)
        return known[key]

    return step_ms


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices, their cloud and their requests. Defaults are assumptions.

    In a closed loop a device thinks for a lognormal time after each answer. In an open one, requests are a Poisson
    process of rate `devices / think_s`, independent of the answers. A device stays with one replica, which consistent
    hashing of its session id gives it. Limits of a replica are those of the service, by the same names, and `kv_tokens`
    is what its KV budget holds.
    """

    devices: int
    replicas: int
    think_s: float = 60.0  # mean time between an answer and the next request
    think_sigma: float = 1.0  # standard deviation of its logarithm
    closed: bool = True
    rtts_ms: tuple[float, ...] = (20.0, 50.0, 100.0, 200.0)  # each device has one of these
    speed_sigma: float = 0.3  # standard deviation of the logarithm of a device's speed; the median is 1
    tenants: int = 8  # each device belongs to one
    step_tokens: int = _LIMITS.step_tokens
    step_requests: int = _LIMITS.step_requests
    prefill_chunk_tokens: int = _LIMITS.prefill_chunk_tokens
    prefill_step_ms: float = _LIMITS.prefill_step_ms
    max_queue: int = _LIMITS.max_queue
    kv_tokens: int = 400_000
    warmup_s: float = 30.0
    window_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("devices", "replicas", "tenants", "kv_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; give 1 or more")
        if not (self.think_s > 0 and self.window_s > 0 and self.warmup_s >= 0):
            raise ConfigError("think_s and window_s must be above 0, warmup_s 0 or more")
        if not self.rtts_ms or min(self.rtts_ms) < 0 or self.think_sigma < 0 or self.speed_sigma < 0:
            raise ConfigError("rtts_ms, think_sigma and speed_sigma: give none below 0, and at least one round trip")

    def scheduler(self) -> Scheduler:
        """Return the scheduler of a replica; raises ConfigError for limits that serve nobody."""
        return Scheduler(
            max_queue=self.max_queue,
            step_tokens=self.step_tokens,
            step_requests=self.step_requests,
            chunk_tokens=self.prefill_chunk_tokens,
            prefill_s=self.prefill_step_ms / 1000,
            context_tokens=CONTEXT_TOKENS,
        )

    def draw_speeds(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw factors on the speed of devices, [count]."""
        return rng.lognormal(0.0, self.speed_sigma, count)

    def draw_thinking(self, rng: np.random.Generator) -> float:
        """Draw the seconds between an answer and the next request."""
        return float(rng.lognormal(math.log(self.think_s) - self.think_sigma**2 / 2, self.think_sigma))

    def draw_rest_of_thinking(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the seconds until thinking devices ask, [count]: the stationary rest of a lognormal time."""
        meeting = rng.lognormal(math.log(self.think_s) + self.think_sigma**2 / 2, self.think_sigma, count)
        return meeting * rng.random(count)
