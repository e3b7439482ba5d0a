"""Profiles of links, as in `configs/links/*.yaml`. `docs/links.md` describes each knob."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from chaperone_common.errors import ConfigError
from chaperone_common.settings import FrozenModel, load_yaml
from chaperone_common.settings.packaged import packaged_path
from chaperone_common.suggestion import nearest
from link_emulator.mahimahi import load_trace, mean_rate_kbit_s

DAY_S = 86_400.0

Seconds = Annotated[float, Field(ge=0.001, le=DAY_S)]


class DirectionProfile(FrozenModel):
    """One direction of a link."""

    delay_ms: float = Field(default=0.0, ge=0, le=60_000)  # mean delay of a lone message
    jitter_ms: float = Field(default=0.0, ge=0, le=60_000)  # standard deviation of that delay
    jitter: Literal["normal", "exponential", "pareto"] = "normal"
    rate_kbit_s: float | None = Field(default=None, ge=1, le=100_000_000)  # on the wire, headers included
    queue_kbytes: float = Field(default=256.0, ge=4, le=1_000_000)
    loss: float = Field(default=0.0, ge=0, le=0.5)  # probability for each segment, independent of the others
    trace: str | tuple[int, ...] | None = None  # a mahimahi file in the profile's folder; `load_profile` reads it

    @model_validator(mode="after")
    def _knobs_agree(self) -> DirectionProfile:
        if self.jitter_ms > self.delay_ms:
            raise ValueError(
                f"jitter_ms {self.jitter_ms:g} exceeds delay_ms {self.delay_ms:g}, so that messages would arrive "
                "before they are sent; lower jitter_ms or raise delay_ms"
            )
        if self.trace is not None and self.rate_kbit_s is not None:
            raise ValueError(f"rate_kbit_s {self.rate_kbit_s:g} and trace both set the rate; give one of them")
        if self.trace == ():
            raise ValueError("trace is empty; give at least one delivery opportunity")
        return self

    @property
    def mean_rate_kbit_s(self) -> float | None:
        """The mean rate on the wire, also of a trace; None without a limit."""
        return mean_rate_kbit_s(self.trace) if isinstance(self.trace, tuple) else self.rate_kbit_s


class PeriodicOutages(FrozenModel):
    """Outages at equal intervals. The seed draws the begin of the first one."""

    every_s: Annotated[float, Field(ge=0.1, le=DAY_S)]  # from start to start
    lasts_s: Seconds

    @model_validator(mode="after")
    def _has_gaps(self) -> PeriodicOutages:
        if self.lasts_s >= self.every_s:
            raise ValueError(
                f"lasts_s {self.lasts_s:g} is not below every_s {self.every_s:g}, so that the link would never work; "
                "lower lasts_s"
            )
        return self


class RandomOutages(FrozenModel):
    """Random outages. The times between them and their lengths are exponentially distributed."""

    mean_interval_s: Seconds
    mean_lasts_s: Seconds


class OutageProfile(FrozenModel):
    """The times in which nothing gets through in both directions."""

    periodic: PeriodicOutages | None = None
    random: RandomOutages | None = None


class ResetProfile(FrozenModel):
    """The times at which every open connection is reset."""

    mean_interval_s: Seconds | None = None  # mean of a Poisson process
    at_s: tuple[Annotated[float, Field(ge=0, le=DAY_S)], ...] = ()  # since the link began

    @field_validator("at_s")
    @classmethod
    def _in_order(cls, at_s: tuple[float, ...]) -> tuple[float, ...]:
        if list(at_s) != sorted(at_s):
            raise ValueError("the times must rise; sort them")
        return at_s


class Profile(FrozenModel):
    """A link: two directions, outages and resets of both, and the size of segments."""

    label: Literal["synthetic", "measured"] = "synthetic"
    description: str = Field(min_length=1, max_length=500)
    up: DirectionProfile = DirectionProfile()
    down: DirectionProfile = DirectionProfile()
    outages: OutageProfile = OutageProfile()
    resets: ResetProfile = ResetProfile()
    mtu_bytes: int = Field(default=1500, ge=576, le=65_535)
    header_bytes: int = Field(default=52, ge=0, le=200)  # 20 for IPv4, 20 for TCP, 12 for its timestamps

    @classmethod
    def fixed(cls, rtt_ms: float, *, rate_kbit_s: float | None = None) -> Profile:
        """Return a plain link: half the round trip in each direction, no jitter, no loss, one rate or no limit."""
        way = DirectionProfile(delay_ms=rtt_ms / 2, rate_kbit_s=rate_kbit_s)
        return cls(description=f"fixed round trip of {rtt_ms:g} ms", up=way, down=way)

    @property
    def rtt_ms(self) -> float:
        """The mean round trip of a lone small message without loss."""
        return self.up.delay_ms + self.down.delay_ms

    @property
    def segment_bytes(self) -> int:
        """The largest payload of one segment."""
        return self.mtu_bytes - self.header_bytes

    def segments(self, payload_bytes: int) -> int:
        """Return the number of segments for this payload; a bare control segment counts as one."""
        return max(1, math.ceil(payload_bytes / self.segment_bytes))

    def wire_bytes(self, payload_bytes: int) -> int:
        """Return the size of a payload with the headers of its segments."""
        return payload_bytes + self.segments(payload_bytes) * self.header_bytes


def profiles_folder() -> Path:
    """Return the folder of the packaged profiles."""
    return packaged_path("links")


def profile_names() -> list[str]:
    """Return the names of the packaged profiles."""
    return sorted(path.stem for path in profiles_folder().glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a packaged profile by its name, or another one by its path, with its traces.

    Raises ConfigError, which lists the packaged names if the name is unknown.
    """
    given = str(name_or_path)
    names = profile_names()
    if given in names:
        return _load(profiles_folder() / f"{given}.yaml")
    if isinstance(name_or_path, Path) or "/" in given or given.endswith((".yaml", ".yml")):
        return _load(Path(given))
    raise ConfigError(
        f"profile: {given!r} is not known{nearest(given, names)}; known: {', '.join(names)}; "
        "or give the path of a YAML file"
    )


def _load(path: Path) -> Profile:
    profile = load_yaml(path, Profile)
    traced = {}
    for side, way in (("up", profile.up), ("down", profile.down)):
        if isinstance(way.trace, str):
            traced[side] = way.model_copy(update={"trace": load_trace(path.parent / way.trace)})
        elif way.trace is not None:
            raise ConfigError(f"{path}: {side}.trace: a list of numbers; name the file that holds them")
    return profile.model_copy(update=traced)
