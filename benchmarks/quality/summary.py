"""Summary of the answers of several strategies, task by task; `python -m benchmarks pooled ANSWERS...`.

`pooled` takes several suites together. Each is a file that `python -m benchmarks quality --answers` has written. It
leaves out a strategy that has not answered all tasks of all suites.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import interval
from benchmarks.quality.gate_outcomes import OutcomeColumns, TokenOutcome
from chaperone_common.errors import ConfigError
from chaperone_common.types import FinishReason
from edge_client.apps.calibration.fitting import figures, reliability

_NEEDED = {"id", "strategy", "passed", "token_ids", "stats", "fates"}

Row = Mapping[str, Any]
Measure = Callable[[Sequence[Row]], float | None]


# --- The command line ------------------------------------------------------------------------------------------------


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
    """Return the strategies that have answered every task of every suite, in the order of the first suite."""
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


# --- The summary -----------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row], strategies: Sequence[str]) -> dict[str, Any]:
    """Return a summary by strategy; intervals are 95% bootstraps over tasks, the same draws for all strategies."""
    by_strategy = {name: {row["id"]: row for row in rows if row["strategy"] == name} for name in strategies}
    return {name: _entry(by_strategy[name], by_strategy) for name in strategies}


def _entry(mine: Mapping[str, Row], all_rows: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    rows = list(mine.values())
    edge, cloud = all_rows.get("edge"), all_rows.get("cloud", all_rows.get("exact"))

    def gap_closed(some: Sequence[Row]) -> float | None:
        return _gap_closed(some, edge, cloud) if edge and cloud else None

    entry = {
        "tasks": len(rows),
        "failed": sum(row["error"] is not None for row in rows),
        "tokens": _sum(rows, "completion_tokens"),
        "equal_cloud": _equal(rows, cloud) if cloud else None,
        "verified_share": _per_token(rows, "verified_tokens", "takeover_tokens"),
        "takeover_share": _per_token(rows, "takeover_tokens"),
        "cloud_wrote_share": _per_token(rows, "takeover_tokens", "overridden_tokens", "bonus_tokens"),
        "round_trips_per_100_tokens": _hundredfold(_per_token(rows, "round_trips", "hidden_round_trips")),
        "waited_for_per_100_tokens": _hundredfold(_per_token(rows, "round_trips")),
        "retracted_per_100_tokens": _hundredfold(_per_token(rows, "retracted_tokens")),
        "decode_tokens_per_s": _speed(rows),
    }
    if rows and rows[0]["passed"] is not None:
        entry |= _with_interval("pass_at_1", rows, _passed) | _with_interval("gap_closed", rows, gap_closed)
    if rows and rows[0]["fates"] is not None:
        entry |= _with_interval("catch", rows, _catch) | _with_interval("deviation_rate", rows, _deviation_rate)
        outcomes = [outcome for row in rows for outcome in _columns(row).known()]
        entry |= _gate_figures(outcomes, [ends for row in rows for ends in _ends(row)])
    return entry


def _equal(rows: Sequence[Row], cloud: Mapping[str, Row]) -> float | None:
    return _share(sum(row["token_ids"] == cloud[row["id"]]["token_ids"] for row in rows), len(rows))


def _speed(rows: Sequence[Row]) -> float | None:
    """Return the speed over all texts, one after the other."""
    seconds = sum(len(row["token_ids"]) / row["decode_tokens_per_s"] for row in rows if row["token_ids"])
    return round(_sum(rows, "completion_tokens") / seconds, 3) if seconds else None


def _passed(rows: Sequence[Row]) -> float | None:
    return _share(sum(row["passed"] for row in rows), len(rows))


def _gap_closed(rows: Sequence[Row], edge: Mapping[str, Row], cloud: Mapping[str, Row]) -> float | None:
    """Return the share of the gap between `edge` and `cloud` in solved tasks that is closed; None without a gap."""
    mine, low, high = (
        sum(row["passed"] for row in some)
        for some in (rows, [edge[row["id"]] for row in rows], [cloud[row["id"]] for row in rows])
    )
    return round((mine - low) / (high - low), 4) if high > low else None


def _catch(rows: Sequence[Row]) -> float | None:
    caught = _sum(rows, "caught")
    return _share(caught, caught + _sum(rows, "deviations"))


def _deviation_rate(rows: Sequence[Row]) -> float | None:
    return _per_token(rows, "deviations")


def _columns(row: Row) -> OutcomeColumns:
    outcomes = row["fates"]
    return OutcomeColumns(
        tuple(outcomes["risk"]), tuple(outcomes["coupled_margin"]), outcomes["fired"], outcomes["overridden"]
    )


def _ends(row: Row) -> list[bool]:
    """Return, for each token with an outcome, if it ends its text; a gate always asks about such a token."""
    last = len(row["token_ids"]) - 1 if row["stats"]["finish_reason"] == FinishReason.STOP else None
    return [place == last for place, mark in enumerate(row["fates"]["fired"]) if mark != "-"]


def _gate_figures(outcomes: Sequence[TokenOutcome], ends: Sequence[bool]) -> dict[str, Any]:
    """Return the quality of the risks, and the share asked by a fixed threshold that misses no more overrides.

    The threshold is chosen in hindsight, on the same tokens. Shares are of the tokens that the device wrote.
    """
    overridden = np.array([outcome.overridden for outcome in outcomes], np.bool_)
    fired = np.array([outcome.fired for outcome in outcomes], np.bool_)
    risks = np.array([outcome.risk for outcome in outcomes])
    asked_for = np.where(np.array(ends, np.bool_), np.inf, risks)
    found: dict[str, Any] = {
        "fired_share": _share(int(fired.sum()), len(outcomes)),
        "fired_share_in_hindsight": fired_share_in_hindsight(asked_for, overridden, int((overridden & ~fired).sum())),
    }
    if 0 < overridden.sum() < len(overridden):
        found["risk"] = figures(risks, overridden, np.array([outcome.coupled_margin for outcome in outcomes]))
        found["reliability"] = [
            [round(mean, 5), round(share, 5), count] for mean, share, count in reliability(risks, overridden)
        ]
    return found


def fired_share_in_hindsight(risks: NDArray[np.float64], overridden: NDArray[np.bool_], missed: int) -> float | None:
    """Return the least share of tokens above a threshold on risks that misses at most `missed` overrides."""
    if not len(risks):
        return None
    order = np.argsort(risks, kind="stable")
    below = np.concatenate(([0], np.cumsum(overridden[order])))  # overrides among the k tokens of least risk
    ranked = risks[order]
    ends = np.concatenate(([True], ranked[1:] > ranked[:-1], [True]))  # a threshold does not separate equal risks
    skipped = int(np.flatnonzero(ends & (below <= missed)).max())
    return _share(len(risks) - skipped, len(risks))


def _with_interval(name: str, rows: Sequence[Row], measure: Measure) -> dict[str, Any]:
    within = interval(len(rows), lambda drawn: measure([rows[index] for index in drawn]), digits=5)
    return {name: measure(rows), f"{name}_95": within}


def _sum(rows: Sequence[Row], *names: str) -> int:
    return sum(int(row["stats"][name]) for row in rows for name in names)


def _per_token(rows: Sequence[Row], *names: str) -> float | None:
    return _share(_sum(rows, *names), _sum(rows, "completion_tokens"))


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 5) if whole else None


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 3)
