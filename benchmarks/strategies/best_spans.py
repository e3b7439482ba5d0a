"""Names such as `sync-best`: the N that `python -m benchmarks peers` found best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.strategies.other_pairs import AT
from chaperone_common.errors import ConfigError

PEERS = Path(__file__).parents[1] / "results" / "peers.json"
BEST = "best"

Row = Mapping[str, Any]


def with_best(names: Sequence[str], path: Path, rtt_ms: float, temperature: float, category: str) -> tuple[str, ...]:
    """Return the names, with the best N in place of `best` in names such as `sync-best`.

    The N is that of the nearest temperature and round trip; of two round trips equally near, the longer one. Raises
    ConfigError if the file has no rows of this kind of prompt.
    """
    if not any(name.partition(AT)[0].endswith(f"-{BEST}") for name in names):
        return tuple(names)
    rows = [row for row in load_peers(path) if row["category"] == category]
    if not rows:
        raise ConfigError(f"strategies: {path} knows no prompts of the class {category!r}; name each N yourself")
    return tuple(_resolved(name, rows, rtt_ms, temperature, path) for name in names)


def load_peers(path: Path) -> list[Row]:
    """Return the rows of a result of `python -m benchmarks peers`; raise ConfigError if the file is not one."""
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for row in rows:
            row["temperature"], row["rtt_ms"], row["family"], row["category"], row["best"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a result of `python -m benchmarks peers` ({error!r}); make it first") from None
    return rows


def _resolved(name: str, rows: Sequence[Row], rtt_ms: float, temperature: float, path: Path) -> str:
    strategy, at, pair = name.partition(AT)
    family, _, tokens = strategy.rpartition("-")
    if tokens != BEST:
        return name
    mine = [row for row in rows if row["family"] == family]
    if not mine:
        known = ", ".join(sorted({row["family"] for row in rows}))
        raise ConfigError(f"strategies: {name!r}: {path} knows no {family!r}, only {known}; make it again")
    nearest = min(
        mine,
        key=lambda row: (abs(row["temperature"] - temperature), abs(row["rtt_ms"] - rtt_ms), -row["rtt_ms"]),
    )
    return f"{family}-{nearest['best']}{at}{pair}"
