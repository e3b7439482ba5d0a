"""The steps of `python -m benchmarks all`, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path("benchmarks/results")  # relative to the root of the repository


@dataclass(frozen=True, slots=True)
class Step:
    """One benchmark with its options, as on a command line; `minutes` are an estimate on two cores."""

    name: str
    purpose: str
    command: str
    output: str  # under benchmarks/results: a file, or a folder
    minutes: float
    options: str = ""
    needs: tuple[str, ...] = ()  # steps whose output it reads

    @property
    def path(self) -> Path:
        """Path of the result."""
        return RESULTS / self.output

    @property
    def line(self) -> tuple[str, ...]:
        """The whole command line."""
        return (self.command, *self.options.split(), "--out", str(self.path))


_TRACES = "benchmarks/traces/reporting-T"
_DECLARED = f"--peers {RESULTS}/peers.json"  # for virtual time
_HERE = f"--peers {RESULTS}/peers-here.json"  # for runs
_BEST = "cloud,exact,sync-best,overlap-best"


def _over_link(name: str, purpose: str, minutes: float, options: str, strategies: str = _BEST) -> Step:
    common = f"--prompts benchmarks/prompt_sets/reporting.jsonl {_HERE} --strategies {strategies}"
    return Step(name, purpose, "run", f"links/{name}.json", minutes, f"{common} {options}", needs=("peers-here",))


def _warm(rtt_ms: int, minutes: float, strategies: str = _BEST) -> Step:
    options = f"--rtt-ms {rtt_ms} --max-new-tokens 64 --traces {_TRACES}0.jsonl.gz"
    return _over_link(f"rtt{rtt_ms}", f"12 prompts over {rtt_ms} ms", minutes, options, strategies)


def _cold(profile: str, minutes: float) -> Step:
    """Return a run of whole requests, which the regret of a mode is measured on."""
    options = f"--link {profile} --cold --repeats 3 --per-category 2 --max-new-tokens 32"
    purpose = f"whole requests over {profile}, 4 prompts three times"
    return _over_link(f"cold-{profile}", purpose, minutes, options, "cloud,exact,overlap-best")


# Estimates: 64 tokens take `cloud` 25 s and the others 5 to 12 s, at 310 to 400 ms per token of the cloud. Without
# AVX-512 a token takes 500 to 600 ms, and all runs half as long again.
WARM = (
    _warm(20, 13),
    _warm(100, 14, f"{_BEST},gated,edge"),
    _warm(200, 14),
    _over_link(
        "rtt100-peers",
        "the other strategies, 6 prompts over 100 ms",
        11,
        f"--rtt-ms 100 --per-category 3 --max-new-tokens 64 --traces {_TRACES}0.jsonl.gz",
        "cloud,exact,acespec-best,specedge-best,bild-0.6-2,uhlm-0.1",
    ),
    _over_link(
        "rtt100-T0.7",
        "6 prompts over 100 ms, sampled",
        8,
        f"--rtt-ms 100 --temperature 0.7 --per-category 3 --max-new-tokens 64 --traces {_TRACES}0.7.jsonl.gz",
    ),
)
WHOLE = Step(
    "whole",
    "24 whole answers of `exact`, `gated` and `edge` over 100 ms",
    "run",
    "links/whole.json",
    minutes=60,
    options="--prompts benchmarks/prompt_sets/whole.jsonl --strategies exact,gated,edge --rtt-ms 100 "
    "--max-new-tokens 400",
)
GATED100 = Step(
    "gated100",
    "`cloud`, `exact`, `gated` and `edge`, 12 prompts over 100 ms",
    "run",
    "links/gated100.json",
    minutes=8,
    options="--prompts benchmarks/prompt_sets/reporting.jsonl --strategies cloud,exact,gated,edge --rtt-ms 100 "
    "--max-new-tokens 64",
)
COLD = (_cold("4g", 7), _cold("satellite", 10), _cold("50kbit", 9))
ASSISTED = _over_link(
    "assisted",
    "both models in one process on both cores, 4 prompts",
    4,
    "--rtt-ms 100 --per-category 2 --max-new-tokens 64",
    "cloud,assisted",
)
_RUNS = (*WARM, ASSISTED, *COLD)


def _names(steps: tuple[Step, ...]) -> tuple[str, ...]:
    return tuple(step.name for step in steps)


def _paths(steps: tuple[Step, ...]) -> str:
    return " ".join(str(step.path) for step in steps)


STEPS = (
    Step(
        "costs",
        "what drafting, reading and streaming take on this machine",
        "run",
        "costs.json",
        minutes=5,
        options="--prompts benchmarks/prompt_sets/tuning.jsonl --per-category 1 --rtt-ms 20 --max-new-tokens 32 "
        "--strategies cloud,exact,sync-2,sync-4,sync-8,sync-16,sync-32",
    ),
    Step(
        "peers-here",
        "best span lengths of published strategies at these costs",
        "peers",
        "peers-here.json",
        minutes=7,
        options=f"--costs {RESULTS}/costs.json --rtts-ms 20,100,200,590",
        needs=("costs",),
    ),
    *_RUNS,
    WHOLE,
    GATED100,
    Step("peers", "the same at the declared costs of the default pair", "peers", "peers.json", 9),
    Step(
        "virtual",
        "all strategies and the bound, by round trip",
        "virtual",
        "virtual.json",
        minutes=4,
        options=f"{_DECLARED} --traces {_TRACES}0.jsonl.gz {_TRACES}0.7.jsonl.gz",
        needs=("peers",),
    ),
    Step(
        "validate",
        "virtual time against the warm runs",
        "validate",
        "validate.json",
        minutes=1,
        options=f"{_paths(WARM)} --traces {_TRACES}0.jsonl.gz {_TRACES}0.7.jsonl.gz",
        needs=_names(WARM),
    ),
    Step(
        "validate-gated",
        "virtual time against the run of `gated`",
        "validate",
        "validate-gated.json",
        minutes=1,
        options=f"{_paths((GATED100,))} --traces {_TRACES}0.jsonl.gz",
        needs=_names((GATED100,)),
    ),
    Step(
        "regret",
        "exact against the best fixed strategy, over a grid",
        "regret",
        "regret.json",
        28,
        options=f"--prompts 2 --traces {_TRACES}0.jsonl.gz",
    ),
    Step(
        "gated-grid",
        "gated against exact, over the same grid, with all prompts",
        "regret",
        "gated-grid.json",
        40,
        options=f"--against none --inexact none --prompts 6 --traces {_TRACES}0.jsonl.gz",
    ),
    Step("fresh", "a client's first text against its tenth", "fresh", "fresh.json", 3),
    Step("risk", "the planner's constants of risk, fitted", "risk", "risk.json", 0.5),
    Step("calibration", "the link emulator against its profiles", "calibration", "calibration.json", 8),
    Step("device", "the device's path over bare onnxruntime", "device", "device.json", 3),
    Step("endpoint", "the speed through the endpoint against the SDK's", "endpoint", "product/endpoint.json", 10),
    Step("footprint", "a device's installed size and import time", "footprint", "product/footprint.json", 0.5),
    Step("recipes", "the portable recipe next to the usual one", "recipes", "product/recipes.json", 5),
    Step("agreement", "the device's model against the cloud's", "agreement", "agreement.json", 10),
    Step(
        "report",
        "the page and its figures",
        "report",
        "report",
        minutes=1,
        options=f"{_paths(_RUNS)} --virtual {RESULTS}/virtual.json --regret {RESULTS}/regret.json "
        f"--gated {RESULTS}/gated-grid.json",
        needs=(*_names(_RUNS), "virtual", "regret", "gated-grid"),
    ),
)
