"""Make everything that is reported again: `python -m benchmarks all`, or `make bench`.

The steps run one after the other, each in a separate process, since they pin cores and load models. A step is skipped
if its result was made by the same source, arguments and files. So the same command continues after an interruption; a
`run` continues with its next generation. A step that fails holds up only the steps that need it. The exit code is 1 if
a step failed or was left out.

The source of a step is the product and the modules of `benchmarks` that the step's module imports
(`benchmarks.kit.digests`): an edit of one study leaves the results of the others current.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.commands import COMMANDS
from benchmarks.kit.digests import digest_of, digest_of_files, digest_of_source
from benchmarks.kit.processes import in_its_own_process
from benchmarks.report.steps import STEPS, Step
from chaperone_common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(".cache/benchmarks")
Launch = Callable[[Sequence[str]], int]  # runs `python -m benchmarks` with these arguments; the exit code


class Outcome(StrEnum):
    """The outcome of a step."""

    MADE = "made"
    SKIPPED = "skipped"  # its result is current: same source, arguments and files
    INCOMPLETE = "incomplete"  # some generations failed; the next run tries them again
    FAILED = "failed"
    LEFT_OUT = "left out"  # a step that it needs failed, or was not made


# --- The command line -----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="steps by name, separated by commas; default: all")
    parser.add_argument("--list", action="store_true", help="list the steps and their durations")
    parser.add_argument("--fresh", action="store_true", help="make everything again, unfinished runs too")


def run(args: argparse.Namespace) -> None:
    """Make the missing results; raise SystemExit if a step failed."""
    steps = chosen(STEPS, args.only)
    if args.list:
        print(as_text(steps))
        return
    outcomes = Suite(ROOT, in_its_own_process).make(steps, fresh=args.fresh)
    if not set(outcomes.values()) <= {Outcome.MADE, Outcome.SKIPPED}:
        sys.exit(1)


def chosen(steps: Sequence[Step], only: str | None) -> tuple[Step, ...]:
    """Return the named steps in their own order; raise ConfigError for an unknown name."""
    if only is None:
        return tuple(steps)
    names = only.split(",")
    if unknown := [name for name in names if name not in {step.name for step in steps}]:
        known = ", ".join(step.name for step in steps)
        raise ConfigError(f"--only: {', '.join(map(repr, unknown))}: no such step; there are {known}")
    return tuple(step for step in steps if step.name in names)


def as_text(steps: Sequence[Step]) -> str:
    """Return a description of the steps, two lines for each."""
    lines = []
    for step in steps:
        needs = f"; needs {', '.join(step.needs)}" if step.needs else ""
        lines.append(f"{step.name:15} {step.minutes:4g} min  {step.purpose}; writes {step.path}{needs}")
        lines.append(f"{'':25} python -m benchmarks {' '.join(step.line)}")
    minutes = sum(step.minutes for step in steps)
    return "\n".join([*lines, f"{'together':15} {minutes:4g} min, on two cores that nothing else uses (an estimate)"])


# --- Making them ----------------------------------------------------------------------------------------------------


class Suite:
    """Makes steps in a checkout, and records under `WORK` how each result was made."""

    def __init__(self, root: Path, launch: Launch, *, steps: Sequence[Step] = STEPS) -> None:
        self._root = root
        self._launch = launch
        self._steps = {step.name: step for step in steps}
        self._record = root / WORK / "suite.json"

    def make(self, steps: Iterable[Step], *, fresh: bool = False) -> dict[str, Outcome]:
        """Make the steps in order; print each one's outcome and duration."""
        outcomes: dict[str, Outcome] = {}
        took_s: dict[str, float] = {}
        for step in steps:
            began_s = time.perf_counter()
            outcomes[step.name] = self._step(step, outcomes, fresh=fresh)
            took_s[step.name] = time.perf_counter() - began_s
            print(f"{step.name}: {outcomes[step.name]}, {took_s[step.name] / 60:.1f} min", flush=True)
        print("\n".join(f"{name:15} {took_s[name] / 60:6.1f} min  {outcome}" for name, outcome in outcomes.items()))
        return outcomes

    def _step(self, step: Step, outcomes: Mapping[str, Outcome], *, fresh: bool) -> Outcome:
        if missing := [name for name in step.needs if not self._usable(name, outcomes)]:
            print(f"{step.name}: needs {', '.join(missing)}", flush=True)
            return Outcome.LEFT_OUT
        made_by = self._made_by(step)
        known = self._known().get(step.name)
        if not fresh and known is not None and known == self._entry(step, made_by):
            return Outcome.SKIPPED
        print(f"\n=== {step.name}: {step.purpose}; about {step.minutes:g} min\n{' '.join(step.line)}", flush=True)
        further = ("--fresh",) if fresh and step.command == "run" else ()
        if self._launch((*step.line, *further)) != 0 or not (self._root / step.path).exists():
            return Outcome.FAILED
        if _failed_generations(self._root / step.path):
            return Outcome.INCOMPLETE
        self._remember(step.name, self._entry(step, made_by))
        return Outcome.MADE

    def _usable(self, name: str, outcomes: Mapping[str, Outcome]) -> bool:
        if outcomes.get(name) in (Outcome.FAILED, Outcome.LEFT_OUT):
            return False
        return (self._root / self._steps[name].path).exists()

    def _made_by(self, step: Step) -> str:
        """Return a digest of the causes of a result: source, profiles, gates, arguments, and the files these name."""
        named = [path for path in map(self._root.joinpath, step.options.split()) if path.is_file()]
        return digest_of(
            {
                "source": digest_of_source(self._root, COMMANDS[step.command].module),
                "profiles": digest_of_files((self._root / "configs" / "links").glob("*.yaml"), self._root),
                "gates": digest_of_files((self._root / "configs" / "gates").glob("*.onnx"), self._root),
                "line": step.line,
                "files": digest_of_files(named, self._root),
            }
        )

    def _entry(self, step: Step, made_by: str) -> dict[str, str]:
        """Return the record of a step: a digest of its causes, and one of its result."""
        path = self._root / step.path
        files = [path] if path.is_file() else [file for file in path.glob("**/*") if file.is_file()]
        return {"made_by": made_by, "result": digest_of_files(files, self._root)}

    def _known(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is no record yet, or an interruption cut it
            return {}
        return known

    def _remember(self, name: str, entry: dict[str, str]) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        known = self._known() | {name: entry}
        self._record.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _failed_generations(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    return any(row.get("error") for row in result.get("generations", ()))
