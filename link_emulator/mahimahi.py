"""Traces in the format of mahimahi: each line is a delivery opportunity, in whole milliseconds since the trace began.

Each opportunity carries up to 1500 bytes, and several may share a millisecond. The trace repeats after its last line,
so the last time is its period. Source: Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC
2015, and the manual page mm-link(1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chaperone_common.errors import ConfigError

OPPORTUNITY_BYTES = 1500
MAX_OPPORTUNITIES = 1_000_000
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_TIME_MS = 86_400_000


def load_trace(path: Path) -> tuple[int, ...]:
    """Read a trace; raises ConfigError, which names file and line."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: the trace cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: more than {MAX_FILE_BYTES // 1024**2} MiB; cut the trace shorter")
    try:
        return parse_trace(content.decode("ascii"), str(path))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not a whole number of milliseconds; is this a mahimahi trace?") from None


def parse_trace(text: str, name: str = "trace") -> tuple[int, ...]:
    """Return the times of the delivery opportunities, in ms and sorted; raises ConfigError, which names the line."""
    times: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        word = line.strip()
        if not word:
            continue
        if not word.isdecimal() or len(word) > 12:
            raise ConfigError(f"{name}:{number}: {word[:40]!r} is not a whole number of milliseconds, one a line")
        time_ms = int(word)
        if time_ms > MAX_TIME_MS:
            raise ConfigError(f"{name}:{number}: {time_ms} ms is more than a day; cut the trace shorter")
        if times and time_ms < times[-1]:
            raise ConfigError(f"{name}:{number}: {time_ms} comes after {times[-1]}; sort the lines")
        if len(times) == MAX_OPPORTUNITIES:
            raise ConfigError(f"{name}:{number}: more than {MAX_OPPORTUNITIES} lines; cut the trace shorter")
        times.append(time_ms)
    if not times:
        raise ConfigError(f"{name}: no delivery opportunity; give whole milliseconds, one a line")
    if times[-1] == 0:
        raise ConfigError(f"{name}: the last time is 0, but it is the period of the trace; end above 0")
    return tuple(times)


def mean_rate_kbit_s(times_ms: Sequence[int]) -> float:
    """Return the mean rate of a trace."""
    return len(times_ms) * OPPORTUNITY_BYTES * 8 / times_ms[-1]
