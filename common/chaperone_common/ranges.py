"""The values that the parameters of a generation may take: defined here once, for settings, requests and the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaperone_common.errors import InvalidRequest
from chaperone_common.suggestion import shown

MAX_SEED = 2**64 - 1
MAX_COUNT = 2**32 - 1  # the wire's whole numbers
MAX_TOP_LOGPROBS = 20
MAX_BEAMS = 8
MAX_BEAM_WIDTH = 16
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256  # characters


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of finite numbers. `expected` completes the sentence "the value is ..." for a value outside it."""

    lowest: float
    highest: float
    expected: str
    includes_lowest: bool = True

    def problem(self, value: float) -> str | None:
        """Return what is wrong with the value, as a message for users, or None."""
        allowed = self.lowest <= value <= self.highest and value != math.inf  # False for NaN
        if allowed and (self.includes_lowest or value != self.lowest):
            return None
        return f"{shown(value)} is {self.expected}"


RANGES: Mapping[str, Range] = {
    "temperature": Range(0, math.inf, "not a finite number >= 0; use 0 for greedy"),
    "top_p": Range(0, 1, "outside (0, 1]; use 1 to switch it off", includes_lowest=False),
    "top_k": Range(0, MAX_COUNT, f"outside [0, {MAX_COUNT}]; use 0 to switch it off"),
    "min_p": Range(0, 1, "outside [0, 1]; use 0 to switch it off"),
    "seed": Range(0, MAX_SEED, "outside [0, 2**64 - 1]"),
    "max_new_tokens": Range(1, MAX_COUNT, f"outside [1, {MAX_COUNT}]; give a number of tokens"),
    "top_logprobs": Range(0, MAX_TOP_LOGPROBS, f"outside [0, {MAX_TOP_LOGPROBS}]; use 0 for the chosen tokens alone"),
    "num_beams": Range(1, MAX_BEAMS, f"outside [1, {MAX_BEAMS}]; use 1 for one text without beams"),
    "num_return_sequences": Range(1, MAX_BEAMS, f"outside [1, {MAX_BEAMS}]; give a number up to num_beams"),
    "beam_width": Range(1, MAX_BEAM_WIDTH, f'outside [1, {MAX_BEAM_WIDTH}]; use "dynamic" to let it follow the link'),
    "beam_threshold": Range(0, 1, "outside (0, 1]; leave it out for a fixed number of beams", includes_lowest=False),
    "length_penalty": Range(-10, 10, "outside [-10, 10]; use 1 for the mean, or 0 for the sum"),
    "catch": Range(0, 1, "outside [0, 1]; use 0 to switch it off"),
    "max_deviation": Range(0, 1, "outside [0, 1]; use 1 to switch it off"),
    "max_cloud_share": Range(0, 1, "outside (0, 1]; use 1 to switch it off", includes_lowest=False),
}


def check_ranges(parameters: object, *names: str) -> None:
    """Raise InvalidRequest for the first of these attributes that is out of its range."""
    for name in names:
        if problem := RANGES[name].problem(getattr(parameters, name)):
            raise InvalidRequest(f"{name}: {problem}")


def top_logprobs_problem(count: int, *, logprobs: bool) -> str | None:
    """Return why the likeliest tokens cannot be reported, as a message for users, or None."""
    if count and not logprobs:
        return f"{count} needs logprobs=True; set it, or leave top_logprobs out"
    return None


def stop_problem(stop: Sequence[str]) -> str | None:
    """Return what is wrong with a list of stop strings, as a message for users, or None."""
    if len(stop) > MAX_STOP_STRINGS:
        return f"{len(stop)} strings, at most {MAX_STOP_STRINGS} are allowed"
    for text in stop:
        if not 0 < len(text) <= MAX_STOP_LENGTH:
            return f"{shown(text)} must have 1 to {MAX_STOP_LENGTH} characters"
    return None
