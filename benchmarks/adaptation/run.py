"""The overrides that a memory of the cloud's corrections saves (`device.adapt`): `python -m benchmarks adaptation`.

Explored texts of the pair are written one after the other, as one client of `exact` sees them, greedy. The memory
begins empty for each suite, in the order of its file. Nothing is timed, and no model runs.

The contexts of the memory were chosen on other texts: all of the suite `code`, and the first texts of the suites that
are reported (`CHOSEN_ON`). These are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adaptation.replay import CloudText, Outcome, total, written
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import Indices, interval
from benchmarks.quality.exploration.text_tree import read_header, read_trees
from chaperone_common.errors import ConfigError
from edge_client.model.corrections import CONTEXTS, Context, CorrectionMemory

EXPLORED = Path(__file__).parents[1] / "explored"
# The number of texts, from the first one, on which the contexts were chosen.
CHOSEN_ON = {"humaneval": 40, "prose": 12, "reasoning": 20}
# Other contexts, for comparison.
OTHERS: tuple[tuple[Context, ...], ...] = (
    (Context(24, 1),),
    (Context(3, 2),),
    (Context(12, 1), Context(3, 2)),
    (Context(24, 1), Context(2, 2)),
    (Context(6, 1), Context(4, 1), Context(3, 1)),
)
_DIGITS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--explored", type=Path, default=EXPLORED, help="a folder of explored texts, SUITE.jsonl.gz")
    parser.add_argument("--suites", default=",".join(CHOSEN_ON))
    parser.add_argument("--whole", action="store_true", help="also the texts on which the contexts were chosen")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Replay all suites; raise ConfigError if a file is missing, or not one of explored texts."""
    measured = provenance()
    names = args.suites.split(",")
    left_out = {name: 0 if args.whole else CHOSEN_ON.get(name, 0) for name in names}
    suites = {name: replayed(args.explored / f"{name}.jsonl.gz", left_out[name]) for name in names}
    return {
        "benchmark": "adaptation",
        **measured,
        "settings": {"explored": args.explored.name, "left_out_texts": left_out, "contexts": _named(CONTEXTS)},
        "summary": suites,
    }


def replayed(path: Path, left_out: int) -> dict[str, Any]:
    """Return the figures of a file's texts after the first `left_out`, written once, and a second time."""
    memories = {contexts: CorrectionMemory(contexts) for contexts in (CONTEXTS, *OTHERS)}
    outcomes: dict[Sequence[Context], list[Outcome]] = {contexts: [] for contexts in memories}
    max_new_tokens = int(read_header(path)["max_new_tokens"])

    def texts() -> list[CloudText]:
        return [CloudText.of(tree, max_new_tokens) for tree in islice(read_trees(path), left_out, None)]

    ours = outcomes[CONTEXTS]
    kept = texts()
    if not kept:
        raise ConfigError(f"{path}: no text is left after the first {left_out}; use --whole")
    for text in kept:
        for contexts, memory in memories.items():
            outcomes[contexts].append(written(text, memory))
    entries = len(memories[CONTEXTS])
    again = [written(text, memories[CONTEXTS]) for text in kept]
    return {
        "texts": len(kept),
        **_figures(ours),
        "entries": entries,
        "last_half": _figures(ours[len(ours) // 2 :]),
        "same_texts_again": _figures(again),
        "other_contexts": {_named(contexts): _figures(outcomes[contexts]) for contexts in OTHERS},
    }


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return counts and rates of some texts; `fewer_overrides` is a share, and its interval is over texts."""
    counts = total(outcomes)
    return {
        "tokens": counts.tokens,
        "overrides": counts.overrides,
        "remembered": counts.remembered,
        "saved": counts.saved,
        "spoiled": counts.spoiled,
        "overrides_per_100_tokens": {
            "without": _rate(counts.overrides, counts.tokens),
            "with": _rate(counts.overrides_with_memory, counts.tokens),
        },
        "fewer_overrides": _fewer(counts.overrides, counts.overrides_with_memory),
        "fewer_overrides_95": _interval(outcomes),
    }


def _interval(outcomes: Sequence[Outcome]) -> list[float] | None:
    before = np.array([outcome.overrides for outcome in outcomes])
    after = np.array([outcome.overrides_with_memory for outcome in outcomes])

    def fewer(drawn: Indices) -> float | None:
        return _fewer(int(before[drawn].sum()), int(after[drawn].sum()))

    return interval(len(outcomes), fewer, digits=_DIGITS)


def _fewer(before: int, after: int) -> float | None:
    return round(1 - after / before, _DIGITS) if before else None


def _rate(count: int, tokens: int) -> float:
    return round(100 * count / tokens, _DIGITS)


def _named(contexts: Sequence[Context]) -> str:
    """Return contexts as text, such as `24 tokens once, 3 tokens twice`."""
    times = {1: "once", 2: "twice"}
    return ", ".join(f"{one.tokens} tokens {times[one.corrections]}" for one in contexts)
