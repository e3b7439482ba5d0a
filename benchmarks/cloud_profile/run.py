"""Duration of a cloud model's forwards: `python -m benchmarks cloud-profile --out FILE`.

A step reads some tokens in each of several sequences that already hold a context: one token is plain decoding, more of
them a verification. Weights are random, since time does not depend on them. Shapes are those of Qwen2.5.

With `--pair NAME`, the forwards are those of the service's own model of that pair instead, with a choice after each
token, on one thread of the processor.

Rows are measured from the smallest to the largest and written one by one, so the same --out continues a run that was
stopped. A step that does not fit into memory or into the budget is skipped, and the file says why.
"""

from __future__ import annotations

import argparse
import json
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.cloud_profile.types import MIN_REPEATS, Plan, Row, Shape
from benchmarks.kit.provenance import provenance
from chaperone_common.errors import ConfigError

FORMAT = 1

Measured = tuple[list[Row], list[dict[str, Any]]]  # rows, and steps that were skipped
Measure = Callable[[Sequence[Row], Callable[[list[Row], list[dict[str, Any]]], None]], Measured]

SHAPES: Mapping[str, Shape] = {
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 151_936, tied=True),
    "qwen2.5-7b": Shape(3584, 18_944, 28, 28, 4, 152_064),
    "qwen2.5-14b": Shape(5120, 13_824, 48, 40, 8, 152_064),
    "qwen2.5-32b": Shape(5120, 27_648, 64, 40, 8, 152_064),
}


@dataclass(frozen=True)
class CloudProfile:
    """The rows of a file, and values between them."""

    header: Mapping[str, Any]
    rows: tuple[Row, ...]

    @classmethod
    def load(cls, path: Path | str) -> CloudProfile:
        """Read a file; raise ConfigError if it is not a profile."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ConfigError(f"{path}: format {data['format']!r}, expected {FORMAT}; measure it again")
            return cls(
                {key: value for key, value in data.items() if key != "rows"}, tuple(Row(**row) for row in data["rows"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: not a cloud profile ({error}); measure one with `python -m benchmarks cloud-profile`"
            ) from None

    def step_ms(self, shape: str, tokens: int, batch: int = 1, context: int = 512) -> float:
        """Return milliseconds of a step in which each of `batch` sequences reads `tokens`, after `context` tokens.

        Values are linear between measured rows in each dimension, and constant below them. Above the most tokens or the
        largest batch, time grows in proportion, as on a saturated machine. Above the longest context it is constant.
        Raises ConfigError for a shape that was not measured.
        """
        if tokens < 1 or batch < 1:
            raise ConfigError(f"tokens {tokens}, batch {batch}: a step reads at least one token of one sequence")
        times = self._times.get(shape)
        if times is None:
            raise ConfigError(f"shape: {shape!r} was not measured; the profile has {', '.join(self._times) or 'none'}")
        return _along(times, (batch, context, tokens))

    @cached_property
    def _times(self) -> dict[str, dict[int, Any]]:
        times: dict[str, dict[int, Any]] = {}
        for row in self.rows:
            by_batch = times.setdefault(row.shape, {})
            by_batch.setdefault(row.batch, {}).setdefault(row.context, {})[row.tokens] = row.median_ms
        return times


_GROWS = (True, False, True)  # batch, context, tokens: whether time grows in proportion beyond what was measured


def _along(times: Mapping[int, Any], wanted: Sequence[int], axis: int = 0) -> float:
    """Interpolate in nested tables, batch outermost; each may have other rows, as some did not fit."""

    def at(key: int) -> float:
        value = times[key]
        return _along(value, wanted, axis + 1) if isinstance(value, Mapping) else float(value)

    keys, value = sorted(times), wanted[axis]
    index = bisect_left(keys, value)
    if index == len(keys):
        return at(keys[-1]) * (value / keys[-1] if _GROWS[axis] else 1.0)
    if keys[index] == value or index == 0:
        return at(keys[index])
    low, high = keys[index - 1], keys[index]
    share = (value - low) / (high - low)
    return (1 - share) * at(low) + share * at(high)


# --- the command ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks cloud-profile`."""
    parser.add_argument("--shapes", default=",".join(SHAPES), help="separated by commas")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--contexts", default="512,2048,8192")
    parser.add_argument("--tokens", default="1,8,16,32", help="tokens that each sequence reads in a step")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--budget-s", type=float, default=1200.0, help="begin no new step after this many seconds")
    parser.add_argument("--pair", help="measure the service's model of this pair, in place of --shapes and --device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="int8", help="with --pair")
    parser.add_argument("--step-tokens", type=int, default=512, help="with --pair: tokens of the largest step")
    parser.add_argument("--device", help="cuda, xpu, mps or cpu; default: the first that is present")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the whole profile; with --out, write it after every row."""
    if args.pair is not None:
        return _run_service(args)
    from benchmarks.cloud_profile.steps import (
        Accelerator,
        measure,
    )  # imports torch, which readers of profiles do not need

    plan = _plan(args)
    accelerator = Accelerator(args.device)
    described = {
        "kind": accelerator.name,
        "name": accelerator.describe(),
        "threads": accelerator.threads,
        "weights": "random",
    }
    return _profile(
        args.out,
        plan,
        described,
        lambda begun, keep: measure(plan, accelerator, begun, time.perf_counter, keep),
    )


def _run_service(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.cloud_profile.service_steps import CLOCK, ServiceModel, measure  # imports torch

    plan = replace(_plan(args), shapes={}, dtype=args.dtype)
    model = ServiceModel(args.pair, args.dtype)
    described = {"kind": "cpu", "name": "cpu", "threads": 1, "weights": model.digest, "clock": CLOCK}
    return _profile(args.out, plan, described, lambda begun, keep: measure(plan, model, args.step_tokens, begun, keep))


def _profile(out: Path | None, plan: Plan, accelerator: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    """Measure a plan; with `out`, continue that file, and write it after every row."""
    header = {
        "benchmark": "cloud-profile",
        "format": FORMAT,
        **provenance(),
        "accelerator": accelerator,
        "shapes": {name: asdict(shape) for name, shape in plan.shapes.items()},
        "settings": {"repeats": plan.repeats, "budget_s": plan.budget_s, "dtype": plan.dtype},
    }
    begun = _begun(out, header)

    def keep(rows: list[Row], skipped: list[dict[str, Any]]) -> None:
        if out is not None:
            _write(out, _result(header, rows, skipped))

    rows, skipped = measure(begun, keep)
    result = _result(header, rows, skipped)
    return {**result, "summary": {"rows": len(rows), "measured_now": len(rows) - len(begun), "skipped": len(skipped)}}


def _plan(args: argparse.Namespace) -> Plan:
    names = args.shapes.split(",")
    if unknown := [name for name in names if name not in SHAPES]:
        raise ConfigError(f"--shapes: {', '.join(unknown)}: unknown; there are {', '.join(SHAPES)}")
    if args.repeats < MIN_REPEATS:
        raise ConfigError(f"--repeats: {args.repeats}; give at least {MIN_REPEATS}")
    return Plan(
        {name: SHAPES[name] for name in names},
        _counts("--batches", args.batches),
        _counts("--contexts", args.contexts),
        _counts("--tokens", args.tokens),
        args.repeats,
        args.budget_s,
    )


def _counts(flag: str, text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise ConfigError(f"{flag}: {text!r}; give whole numbers of at least 1, separated by commas")
    return counts


def _begun(path: Path | None, header: Mapping[str, Any]) -> tuple[Row, ...]:
    """Return the rows of an earlier run; raise ConfigError if another machine measured them."""
    if path is None or not path.exists():
        return ()
    earlier = CloudProfile.load(path)
    for name in ("machine", "accelerator"):
        if earlier.header.get(name) != header[name]:
            raise ConfigError(f"{path}: measured on another {name}; give another --out, or remove the file")
    return earlier.rows


def _result(header: Mapping[str, Any], rows: Sequence[Row], skipped: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {**header, "skipped": list(skipped), "rows": [asdict(row) for row in rows]}


def _write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
