"""Quality of answers, and whether gates keep their promises: `python -m benchmarks quality --suite humaneval`.

Every strategy answers every task. Code is run in a sandbox, other answers are scored by reasoning-gym, and prose is not
scored. Quality does not depend on the link, but on the times of the questions and on what the gate has learned. So real
engines write in virtual time, over 100 ms and at the declared costs of the default pair, and the models answer for
several texts at once (`benchmarks.quality.exploration`). Their answers are kept in `--explored`: the same command
continues after an interruption, and a further strategy asks only where its texts are new.

All generations of a strategy are one client's: its gate learns from task to task. Every skipped token is audited.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kit.pair_models import check_models, models_of
from benchmarks.kit.provenance import provenance
from benchmarks.quality.exploration.explored_models import ExploredModels
from benchmarks.quality.exploration.explorer import Explorer, RecordingModel
from benchmarks.quality.exploration.plain_texts import cloud_writes, device_reads, device_writes
from benchmarks.quality.exploration.text_tree import ROOT, TextTree, load_trees, save_trees
from benchmarks.quality.exploration.workload import write_all
from benchmarks.quality.gate_outcomes import OutcomeColumns, RecordingGate, chosen_gate
from benchmarks.quality.summary import summarise
from benchmarks.quality.task_suites import SUITES, Task, tasks_of
from benchmarks.simulation.costs import DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation
from benchmarks.simulation.strategy import Strategy
from benchmarks.strategies.families import strategy_named
from benchmarks.strategies.gated import add_gate_option
from benchmarks.traces.record import device_model
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode, SamplingParams
from edge_client import EdgeClient, EdgeConfig
from edge_client.gate import Gate
from edge_client.gate.gate_model import GateModel
from edge_client.gate.risk import CalibratedRisk
from edge_client.planner import Estimates
from link_emulator.profile import Profile

RTT_MS = 100.0
# Branches make overrides cheaper but do not change them, and would cost further answers of the models.
SCENARIO = Scenario(Profile.fixed(RTT_MS), draft=DraftCosts(branches=0))
GREEDY = SamplingParams()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument(
        "--strategies",
        default="edge,cloud,gated-0.95",
        help="modes, gated-CATCH, retract-CATCH, deviation-CEILING, threshold-RISK, bild-FALLBACK-ROLLBACK, "
        "uhlm-THRESHOLD",
    )
    parser.add_argument(
        "--read-along",
        action="store_true",
        help="ask the device along the cloud's texts, too; `gates` and `fit-gate` need it, and `cloud` as a strategy",
    )
    parser.add_argument("--tasks", type=int, help="only N tasks, spread evenly over the suite; default: all")
    parser.add_argument("--pair", default="default")
    add_gate_option(parser)
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="of the cloud's model"
    )
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--together", type=int, default=32, help="texts of one group, which are written at once")
    parser.add_argument(
        "--apart-s",
        type=float,
        default=0.25,
        help="virtual seconds between the beginnings of a group's texts, so that not all begin easily and end hard",
    )
    parser.add_argument("--threads", type=int, default=2, help="of each model; they mostly take turns")
    parser.add_argument("--explored", type=Path, required=True, help="explored texts, *.jsonl.gz; created or continued")
    parser.add_argument("--answers", type=Path, help="write the answers to this file: *.jsonl.gz")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer, score and summarise; raise ConfigError for options that contradict each other."""
    _check(args)
    names = list(dict.fromkeys(args.strategies.split(",")))
    client = EdgeClient(EdgeConfig(pair=args.pair))
    try:
        gate = chosen_gate(args.gate, client.manifest)
        strategies = [assessed_strategy(name, gate, client.token_text) for name in names]
        study = _Study(args, tasks_of(args.suite, args.tasks), client)
        rows = study.answers(strategies)
    finally:
        asyncio.run(client.aclose())
    if args.answers is not None:
        lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        args.answers.write_bytes(gzip.compress(lines.encode(), mtime=0))
    return {
        "benchmark": "quality",
        **provenance(),
        "settings": {
            "suite": args.suite,
            "tasks": len(study.tasks),
            "strategies": names,
            "pair": args.pair,
            "gate": None if gate is None else gate.card.data.model_dump(),
            "dtype": study.dtype,
            "max_new_tokens": args.max_new_tokens,
            "together": args.together,
            "apart_s": args.apart_s,
            "rtt_ms": RTT_MS,
        },
        "summary": summarise(rows, names),
    }


def _check(args: argparse.Namespace) -> None:
    for name in ("max_new_tokens", "together", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)}; at least 1")
    if not 0 <= args.apart_s < math.inf:
        raise ConfigError(f"--apart-s: {args.apart_s:g} is no number of seconds; 0 lets all begin at once")


@dataclass(frozen=True, slots=True)
class AssessedStrategy:
    """A strategy and its source of risks: a calibrated gate for a prompt's length, or the signals alone."""

    strategy: Strategy
    risk_model: Callable[[int], CalibratedRisk] | None = None


def assessed_strategy(name: str, gate: GateModel | None, token_text: Callable[[int], str]) -> AssessedStrategy:
    """Return a strategy by name; raise as `strategy_named` does."""
    strategy = strategy_named(name, gate)
    calibrated = strategy.gate_model
    return AssessedStrategy(strategy, None if calibrated is None else partial(CalibratedRisk, calibrated, token_text))


class _Study:
    """Tasks, and the models' answers on them."""

    dtype: str  # dtype of the cloud's model

    def __init__(self, args: argparse.Namespace, tasks: Sequence[Task], client: EdgeClient) -> None:
        self.tasks = tasks
        self._args = args
        self._client = client
        self._trees: dict[str, TextTree] = {}
        self._estimates: dict[str, Estimates] = {}  # by strategy, as each has one client

    def answers(self, strategies: Sequence[AssessedStrategy]) -> list[dict[str, Any]]:
        """Return the answers of all strategies, group by group of tasks."""
        folder = pair_folder(self._args.pair, "cloud")
        manifest = load_manifest(folder, role="cloud")
        cloud = RecordingModel.of_manifest(folder, manifest, dtype=self._args.dtype, threads=self._args.threads)
        self.dtype = cloud.model.dtype
        header, self._trees = self._explored()
        self._check_prompts()
        device = device_model(self._args.pair, self._client.manifest, threads=self._args.threads)
        save = partial(self._save, header)
        try:
            return self._all_answers(strategies, Explorer(device, cloud, GREEDY), save)
        finally:  # an interrupted command continues here
            device.close()  # waits for forwards that write to the trees
            save()

    def _all_answers(
        self, strategies: Sequence[AssessedStrategy], explorer: Explorer, save: Callable[[], None]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        began = time.monotonic()
        names = {one.strategy.name for one in strategies}
        for tasks in self._groups():
            self._write_plain_texts(tasks, names, explorer)
            save()
            print(f"plain texts up to {tasks[-1].id}, {(time.monotonic() - began) / 60:.1f} min", flush=True)
            for one in strategies:
                rows += self._answer(tasks, one, explorer)
                save()
                _report(one.strategy.name, len(rows), len(strategies) * len(self.tasks), began)
            for task in tasks:
                explorer.leave(self._trees[task.id])
        return rows

    def _save(self, header: dict[str, Any]) -> None:
        save_trees(self._args.explored, header, self._trees.values())

    def _explored(self) -> tuple[dict[str, Any], dict[str, TextTree]]:
        """Return the header and the texts explored before; raise ConfigError if they are those of another study."""
        path, pair = self._args.explored, self._args.pair
        settings = {
            "suite": self._args.suite,
            "dtype": self.dtype,
            "max_new_tokens": self._args.max_new_tokens,
        }
        if not path.exists():
            return {**settings, "models": models_of(pair)}, {}
        header, trees = load_trees(path)
        for name, value in settings.items():
            if header.get(name) != value:
                raise ConfigError(
                    f"{path}: {name} is {header.get(name)!r} there, not {value!r}; name another --explored"
                )
        check_models(path, header.get("models", {}), pair, remedy="name another --explored")
        return header, trees

    def _groups(self) -> Iterator[Sequence[Task]]:
        together: int = self._args.together
        for first in range(0, len(self.tasks), together):
            yield self.tasks[first : first + together]

    def _write_plain_texts(self, tasks: Sequence[Task], names: Set[str], explorer: Explorer) -> None:
        """Write the texts of one model alone, in the quickest way; other strategies write much of the same."""
        begun = {self._tree(task): ROOT for task in tasks}
        limits = {"eos_token_ids": self._client.manifest.eos_token_ids, "max_new_tokens": self._args.max_new_tokens}
        if names & {"cloud", "exact"}:
            paths = cloud_writes(explorer, begun, **limits)
            if self._args.read_along:
                device_reads(explorer, paths)
        if "edge" in names:
            device_writes(explorer, begun, **limits)

    def _answer(self, tasks: Sequence[Task], one: AssessedStrategy, explorer: Explorer) -> list[dict[str, Any]]:
        gates: list[RecordingGate] = []

        def witnessed() -> Gate:
            gates.append(RecordingGate(one.strategy.gate()))
            return gates[-1]

        written = write_all(
            [self._models(task, one.strategy, explorer) for task in tasks],
            SCENARIO,
            replace(one.strategy, gate=witnessed),
            estimates=self._estimates.setdefault(one.strategy.name, Estimates()),
            risk_model=one.risk_model,
            apart_s=self._args.apart_s,
        )
        return [
            self._row(task, one.strategy, written_one, gate)
            for task, written_one, gate in zip(tasks, written, gates, strict=True)
        ]

    def _models(self, task: Task, strategy: Strategy, explorer: Explorer) -> ExploredModels:
        return ExploredModels(
            self._tree(task),
            explorer,
            GREEDY,
            eos_token_ids=self._client.manifest.eos_token_ids,
            max_new_tokens=self._args.max_new_tokens,
            lenient_nats=strategy.lenient_nats,
            risk_is_disagreement=strategy.risk_is_disagreement,
        )

    def _row(self, task: Task, strategy: Strategy, written: Simulation, gate: RecordingGate) -> dict[str, Any]:
        text = self._client.tokenizer.decode(written.token_ids)
        outcome = task.score(text) if task.score is not None else None
        outcomes = gate.outcomes(written.token_ids, len(self._tree(task).prompt))
        return {
            "id": task.id,
            "strategy": strategy.name,
            "passed": None if outcome is None else outcome.passed,
            "reason": None if outcome is None else outcome.reason,
            "error": None if written.error is None else written.error.message,
            "token_ids": written.token_ids,
            "text": text,
            "decode_tokens_per_s": round(written.decode_tokens_per_s, 3),
            "stats": written.stats.to_json(),
            "fates": OutcomeColumns.of(outcomes).to_json() if strategy.mode is Mode.GATED else None,
        }

    def _check_prompts(self) -> None:
        """Raise ConfigError if a text was explored for a prompt that has changed."""
        for task in self.tasks:
            if task.id in self._trees and self._trees[task.id].prompt != self._new_tree(task).prompt:
                raise ConfigError(f"{self._args.explored}: {task.id} has another prompt there; name another --explored")

    def _tree(self, task: Task) -> TextTree:
        if task.id not in self._trees:
            self._trees[task.id] = self._new_tree(task)
        return self._trees[task.id]

    def _new_tree(self, task: Task) -> TextTree:
        return TextTree(task.id, tuple(self._client.prepare(task.message).token_ids))


def _report(strategy: str, done: int, of: int, began: float) -> None:
    elapsed_s = time.monotonic() - began
    left_min = elapsed_s / done * (of - done) / 60
    print(f"{done:5} of {of} answers, {strategy}; {elapsed_s / 60:.1f} min, about {left_min:.0f} to go", flush=True)
