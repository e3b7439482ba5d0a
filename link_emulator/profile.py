"""What a link is like, as in `configs/links/*.yaml`; `docs/links.md` says what each knob means."""

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
    """One way through the link. Delay and jitter are mean and standard deviation of a lone message's way."""

    delay_ms: float = Field(default=0.0, ge=0, le=60_000)
    jitter_ms: float = Field(default=0.0, ge=0, le=60_000)
    jitter: Literal["normal", "exponential", "pareto"] = "normal"
    rate_kbit_s: float | None = Field(default=None, ge=1, le=100_000_000)  # on the wire, headers included
    queue_kbytes: float = Field(default=256.0, ge=4, le=1_000_000)
    loss: float = Field(default=0.0, ge=0, le=0.5)  # of segments, each on its own
    trace: str | tuple[int, ...] | None = None  # a mahimahi file beside the profile; `load_profile` reads it

    @model_validator(mode="after")
    def _knobs_agree(self) -> DirectionProfile:
        if self.jitter_ms > self.delay_ms:
            raise ValueError(
                f"jitter_ms {self.jitter_ms:g} exceeds delay_ms {self.delay_ms:g}, so that messages would arrive "
                "before they are sent; lower jitter_ms or raise delay_ms"
            )
        if self.trace is not None and self.rate_kbit_s is not None:
            raise ValueError(f"rate_kbit_s {self.rate_kbit_s:g} and trace both say how fast it is; give one of them")
        if self.trace == ():
            raise ValueError("trace is empty; give at least one delivery opportunity")
        return self

    @property
    def mean_rate_kbit_s(self) -> float | None:
        """Mean rate on the wire, of a trace too; None without a limit."""
        return mean_rate_kbit_s(self.trace) if isinstance(self.trace, tuple) else self.rate_kbit_s


class PeriodicOutages(FrozenModel):
    """An outage every so often, measured from start to start; the seed draws when the first one begins."""

    every_s: Annotated[float, Field(ge=0.1, le=DAY_S)]
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
    """Outages out of the blue: times between them and their lengths are exponentially distributed."""

    mean_interval_s: Seconds
    mean_lasts_s: Seconds


class OutageProfile(FrozenModel):
    """When nothing gets through, in neither direction."""

    periodic: PeriodicOutages | None = None
    random: RandomOutages | None = None


class ResetProfile(FrozenModel):
    """When every open connection is reset."""

    mean_interval_s: Seconds | None = None  # of a Poisson process
    at_s: tuple[Annotated[float, Field(ge=0, le=DAY_S)], ...] = ()  # since the link began

    @field_validator("at_s")
    @classmethod
    def _in_order(cls, at_s: tuple[float, ...]) -> tuple[float, ...]:
        if list(at_s) != sorted(at_s):
            raise ValueError("the times must rise; sort them")
        return at_s


class Profile(FrozenModel):
    """A link: two directions, what takes both of them down, and how bytes become segments."""

    label: Literal["synthetic", "measured"] = "synthetic"
    description: str = Field(min_length=1, max_length=500)
    up: DirectionProfile = DirectionProfile()
    down: DirectionProfile = DirectionProfile()
    outages: OutageProfile = OutageProfile()
    resets: ResetProfile = ResetProfile()
    mtu_bytes: int = Field(default=1500, ge=576, le=65_535)
    header_bytes: int = Field(default=52, ge=0, le=200)  # IPv4 20, TCP 20, and 12 for its timestamps

    @classmethod
    def fixed(cls, rtt_ms: float, *, rate_kbit_s: float | None = None) -> Profile:
        """A plain link: half the round trip each way, no jitter, no loss, and one rate or no limit."""
        way = DirectionProfile(delay_ms=rtt_ms / 2, rate_kbit_s=rate_kbit_s)
        return cls(description=f"fixed round trip of {rtt_ms:g} ms", up=way, down=way)

    @property
    def rtt_ms(self) -> float:
        """Mean round trip of a lone, loss-free message too small for the rate to matter."""
        return self.up.delay_ms + self.down.delay_ms

    @property
    def segment_bytes(self) -> int:
        """The most payload that one segment carries."""
        return self.mtu_bytes - self.header_bytes

    def segments(self, payload_bytes: int) -> int:
        """How many segments carry so much payload; a bare control segment is one."""
        return max(1, math.ceil(payload_bytes / self.segment_bytes))

    def wire_bytes(self, payload_bytes: int) -> int:
        """Payload and the headers of its segments."""
        return payload_bytes + self.segments(payload_bytes) * self.header_bytes


def profiles_folder() -> Path:
    """Where the profiles lie that come along."""
    return packaged_path("links")


def profile_names() -> list[str]:
    """The profiles that come along."""
    return sorted(path.stem for path in profiles_folder().glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile that comes along by its name, or any other by its path, with the traces that it names.

    Raises ConfigError, which lists the names if there is none like it.
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
