"""The ways to write a text that the study compares, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from chaperone_common.errors import ConfigError
from chaperone_common.ranges import MAX_BEAM_WIDTH, MAX_BEAMS
from chaperone_common.types import Mode

_NAME = re.compile(r"(beams|cloud|generate)-([1-9][0-9]*)(?:-(one)|-w([1-9][0-9]*)|-t(0\.[0-9]+))?")
NAMES = "exact, cloud, beams-K, beams-K-wW, beams-K-tT, beams-K-one, cloud-K, generate-K"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to write a text."""

    name: str
    mode: Mode | None  # None: `generate` of transformers, in a process with the large model alone
    num_beams: int = 1
    beam_width: int | None = None
    beam_threshold: float | None = None
    one_cache: bool = False

    @classmethod
    def of(cls, name: str) -> Way:
        """Return the way of a name; raises ConfigError.

        `exact` and `cloud` write one text. `beams-K` has K beams with forests by the device, `cloud-K` without them,
        and `generate-K` is transformers' own. W is a fixed width of the forests, T the threshold of the paper's law
        for the number of beams, and `one` goes on from the best beam alone.
        """
        if name in (Mode.EXACT, Mode.CLOUD):
            return cls(name, Mode(name))
        match = _NAME.fullmatch(name)
        if match is None or (match[1] != "beams" and name.count("-") > 1):
            raise ConfigError(f"--ways: {name!r} is none of {NAMES}")
        num_beams, width = int(match[2]), int(match[4]) if match[4] else None
        if not 2 <= num_beams <= MAX_BEAMS or (width or 1) > MAX_BEAM_WIDTH:
            raise ConfigError(f"--ways: {name!r}; K is from 2 to {MAX_BEAMS}, and W up to {MAX_BEAM_WIDTH}")
        mode = {"beams": Mode.EXACT, "cloud": Mode.CLOUD, "generate": None}[match[1]]
        threshold = float(match[5]) if match[5] else None
        return cls(name, mode, num_beams, width, threshold, one_cache=match[3] is not None)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of a generation by our client."""
        if self.num_beams == 1:
            return {"mode": self.mode}
        return {
            "mode": self.mode,
            "num_beams": self.num_beams,
            "beam_width": self.beam_width or "dynamic",
            "beam_threshold": self.beam_threshold,
            "one_cache": self.one_cache,
        }
