"""The suite: steps that run, are skipped, or are stopped by a failure."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.commands import COMMANDS
from benchmarks.kit.digests import PRODUCT
from benchmarks.report.make_all import Suite, as_text, chosen
from benchmarks.report.steps import RESULTS, STEPS, Step
from chaperone_common.errors import ConfigError
from tests.support.processes.commands import ROOT

A = Step("a", "the first", "peers", "a.json", 1.0, "--traces traces.gz")
B = Step("b", "of the first", "run", "links/b.json", 2.0, f"--peers {RESULTS}/a.json", needs=("a",))
C = Step("c", "of nothing", "risk", "c.json", 3.0)
PAGE = Step("page", "of all", "report", "page", 4.0, needs=("b", "c"))
ABC = (A, B, C, PAGE)


def source_of(command: str) -> str:
    return COMMANDS[command].module.replace(".", "/") + ".py"


class Bench:
    """A checkout in a temporary folder, whose benchmarks write given results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.launched: list[Sequence[str]] = []
        self.fails: set[str] = set()
        self.generations: list[dict[str, object]] = []
        self.content = "1"
        for package in (*PRODUCT, "configs/links"):
            (root / package).mkdir(parents=True)
        for command in ("peers", "run", "risk", "report"):
            self.write(source_of(command), "from benchmarks.kit import provenance")
        self.write(source_of("peers"), "from benchmarks.kit import provenance\nfrom benchmarks.virtual import replay")
        self.write("benchmarks/virtual/replay.py", "")
        self.write("benchmarks/kit/provenance.py", "")
        self.write("common/chaperone_common/types.py", "1")
        self.write("traces.gz", "1")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def launch(self, arguments: Sequence[str]) -> int:
        self.launched.append(arguments)
        command, path = arguments[0], self.root / arguments[list(arguments).index("--out") + 1]
        if command in self.fails:
            return 1
        if command == "report":
            path.mkdir(parents=True, exist_ok=True)
            path /= "index.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"content": self.content, "generations": self.generations}), encoding="utf-8")
        return 0

    def make(self, steps: Sequence[Step] = ABC, *, fresh: bool = False) -> str:
        """Return the launched commands and the outcome of each step."""
        self.launched.clear()
        outcomes = Suite(self.root, self.launch, steps=ABC).make(steps, fresh=fresh)
        return " ".join(line[0] for line in self.launched) + ": " + " ".join(outcomes.values())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_steps_run_in_order_and_unchanged_ones_are_skipped(bench: Bench) -> None:
    assert bench.make() == "peers run risk report: made made made made"
    assert bench.launched[0] == ("peers", "--traces", "traces.gz", "--out", "benchmarks/results/a.json")
    assert bench.make() == ": skipped skipped skipped skipped"
    assert bench.make((C,), fresh=True) == "risk: made"


def test_fresh_is_passed_to_unfinished_runs_only(bench: Bench) -> None:
    bench.make(fresh=True)
    assert [line[-1] == "--fresh" for line in bench.launched] == [False, True, False, False]


@pytest.mark.parametrize(
    "path", ["common/chaperone_common/types.py", "benchmarks/kit/provenance.py", "configs/links/moon.yaml"]
)
def test_a_changed_source_or_link_repeats_every_step(bench: Bench, path: str) -> None:
    bench.make()
    bench.write(path, "2")
    assert bench.make() == "peers run risk report: made made made made"


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        ("peers", "peers: made skipped skipped skipped"),
        ("risk", "risk: skipped skipped made skipped"),
        ("report", "report: skipped skipped skipped made"),
        ("fleet", ": skipped skipped skipped skipped"),
    ],
)
def test_a_changed_study_keeps_all_others_current(bench: Bench, command: str, outcome: str) -> None:
    bench.make()
    bench.write(source_of(command), "CHANGED = True")
    assert bench.make() == outcome


def test_a_changed_module_repeats_only_the_studies_that_import_it(bench: Bench) -> None:
    bench.make()
    bench.write("benchmarks/virtual/replay.py", "CHANGED = True")
    assert bench.make() == "peers: made skipped skipped skipped"


def test_an_input_file_counts_with_its_content(bench: Bench) -> None:
    bench.make()
    bench.write("traces.gz", "2")
    assert bench.make() == "peers: made skipped skipped skipped", "the result was the same"
    bench.write("traces.gz", "3")
    bench.content = "2"
    assert bench.make() == "peers run: made made skipped skipped"


def test_a_missing_or_changed_result_repeats_its_step(bench: Bench) -> None:
    bench.make()
    (bench.root / C.path).unlink()
    bench.write(str(PAGE.path / "index.html"), "changed")
    assert bench.make() == "risk report: skipped skipped made made"


def test_a_failure_stops_only_dependent_steps(bench: Bench) -> None:
    bench.fails = {"peers"}
    assert bench.make() == "peers risk: failed left out made left out"
    bench.fails = set()
    assert bench.make() == "peers run report: made made skipped made"
    bench.fails = {"peers"}
    assert bench.make(fresh=True) == "peers risk: failed left out made left out", "the old result is not used"


def test_a_single_step_needs_existing_inputs(bench: Bench) -> None:
    assert bench.make((B,)) == ": left out"
    bench.make((A,))
    assert bench.make((B,)) == "run: made"


def test_a_run_whose_generations_failed_continues(bench: Bench) -> None:
    bench.generations = [{"error": None}, {"error": "lost"}]
    assert bench.make((A,)) == "peers: incomplete"
    bench.generations = []
    assert bench.make((A,)) == "peers: made"


def test_a_truncated_record_begins_again(bench: Bench) -> None:
    bench.make((A,))
    bench.write(".cache/benchmarks/suite.json", '{"a": ')
    assert bench.make((A,)) == "peers: made"


def test_the_order_of_the_steps_is_possible() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    assert len({step.path for step in STEPS}) == len(STEPS)
    for index, step in enumerate(STEPS):
        assert step.command in COMMANDS
        assert set(step.needs) <= set(names[:index]), "inputs are made first"
        made = {str(needed.path) for needed in STEPS[:index] if needed.name in step.needs}
        read = {word for word in step.options.split() if word.startswith("benchmarks/")}
        assert {path for path in read - made if not (ROOT / path).exists()} == set()
    assert sum(step.minutes for step in STEPS) < 300


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_options_of_a_step_are_valid(step: Step) -> None:
    command, *options = step.line
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    importlib.import_module(COMMANDS[command].module).add_arguments(parser)
    assert parser.parse_args(options).out == step.path


def test_steps_are_listed_with_their_time() -> None:
    assert as_text((A, B)).splitlines()[-1].split()[:3] == ["together", "3", "min,"]
    assert "needs a" in as_text((B,))


def test_a_choice_keeps_the_order_and_refuses_unknown_steps() -> None:
    assert chosen(ABC, "c,a") == (A, C)
    assert chosen(ABC, None) == ABC
    with pytest.raises(ConfigError, match="'d': no such step; there are a, b, c, page"):
        chosen(ABC, "a,d")
