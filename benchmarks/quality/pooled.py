"""Quality on several suites together: `python -m benchmarks pooled ANSWERS... --out P.json`.

Each suite is a file that `python -m benchmarks quality --answers` has written. Only strategies that have answered all
tasks of all suites can be told of.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.provenance import provenance
from benchmarks.quality.summary import summarise
from chaperone_common.errors import ConfigError

Row = dict[str, Any]
_NEEDED = {"id", "strategy", "passed", "token_ids", "stats", "fates"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", type=Path, nargs="+", help="*.jsonl.gz of different suites")


def run(args: argparse.Namespace) -> dict[str, Any]:
    suites = [_answers(path) for path in args.answers]
    rows = [row for suite in suites for row in suite]
    twice = [key for key, count in Counter((row["strategy"], row["id"]) for row in rows).items() if count > 1]
    if twice:
        raise ConfigError(f"answers: {twice[0][1]} is answered by {twice[0][0]} more than once; name each suite once")
    if len({row["passed"] is None for row in rows}) > 1:
        raise ConfigError("answers: some suites have right answers and some have none; pool those that have")
    strategies = _common_strategies(suites)
    if not {"edge", "cloud"} <= set(strategies):
        raise ConfigError(f"answers: all files have {', '.join(strategies) or 'nothing'}; edge and cloud are needed")
    return {
        "benchmark": "pooled",
        **provenance(),
        "settings": {
            "answers": [path.name for path in args.answers],
            "tasks": [len({row["id"] for row in suite}) for suite in suites],
        },
        "summary": summarise([row for row in rows if row["strategy"] in strategies], strategies),
    }


def _common_strategies(suites: Sequence[Sequence[Row]]) -> list[str]:
    """Those that have answered every task that any strategy has, in the order of the first suite."""
    complete = []
    for suite in suites:
        tasks = {row["id"] for row in suite}
        answered = {name: {row["id"] for row in suite if row["strategy"] == name} for name in _names(suite)}
        complete.append({name for name, ids in answered.items() if ids == tasks})
    return [name for name in _names(suites[0]) if all(name in names for names in complete)]


def _names(suite: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["strategy"] for row in suite))


def _answers(path: Path) -> list[Row]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows: list[Row] = [json.loads(line) for line in lines]
        known = bool(rows) and all(row.keys() >= _NEEDED for row in rows)
    except (OSError, EOFError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a file of answers ({error}); make it with `quality --answers`") from None
    if not known:
        raise ConfigError(f"{path}: not a file of answers; make it with `quality --answers`")
    return rows
