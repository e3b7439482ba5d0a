"""The commands of `python -m benchmarks`."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """The module of a benchmark, and its purpose."""

    module: str
    purpose: str


COMMANDS = {
    "run": Command("benchmarks.measured.run", "strategies against each other: real processes, an emulated link"),
    "report": Command("benchmarks.report.report", "figures and a page of the results of `run`"),
    "device": Command(
        "benchmarks.measured.device", "the device's overhead over bare onnxruntime, and the longest event-loop gap"
    ),
    "turns": Command(
        "benchmarks.measured.turns", "the first token of a conversation's third turn, compared with a new text's"
    ),
    "endpoint": Command("benchmarks.product.endpoint", "speed through `chaperone serve`, compared with the SDK"),
    "footprint": Command("benchmarks.product.footprint", "installed size of a device, and the time of an import"),
    "agreement": Command(
        "benchmarks.measured.agreement",
        "agreement of the device model with the cloud model, compared with another export",
    ),
    "recipes": Command(
        "benchmarks.product.recipes",
        "speed and size of the device model by the portable recipe, next to the usual one",
    ),
    "record": Command("benchmarks.traces.record", "traces of the pair for the simulator"),
    "extend": Command("benchmarks.traces.extend", "values that BiLD and U-HLM decide by, added to traces"),
    "simulate": Command("benchmarks.virtual.simulate", "strategies on recorded traces, on a virtual clock"),
    "calibration": Command("benchmarks.emulator.check", "the link emulator compared with its profiles"),
    "peers": Command(
        "benchmarks.virtual.peers", "the best span length of each published strategy, by round trip, in virtual time"
    ),
    "virtual": Command(
        "benchmarks.virtual.run", "all strategies and the clairvoyant bound, by round trip, in virtual time"
    ),
    "validate": Command("benchmarks.virtual.validate", "virtual time against measured runs"),
    "regret": Command(
        "benchmarks.virtual.regret", "loss of exact against the best fixed strategy, over a grid in virtual time"
    ),
    "fresh": Command(
        "benchmarks.virtual.fresh", "the first text of a fresh client compared with its tenth, in virtual time"
    ),
    "quality": Command(
        "benchmarks.quality.run", "pass@1, and whether gates keep their promises: strategies on suites of tasks"
    ),
    "pooled": Command("benchmarks.quality.summary", "quality on several suites together"),
    "gates": Command(
        "benchmarks.quality.gates",
        "catch of signals and gates at equal budgets, compared with an oracle, along explored texts",
    ),
    "reread": Command("benchmarks.quality.reread", "recorded texts of the cloud, read by another device's model"),
    "fit-gate": Command("benchmarks.quality.fit_gate", "the packaged gate of a pair, from explored texts"),
    "gate-figures": Command("benchmarks.report.gate_figures", "figures of the results of quality and gates"),
    "risk": Command(
        "benchmarks.virtual.risk_constants", "the planner's fixed constants of risk, fitted on the tuning traces"
    ),
    "cloud-profile": Command(
        "benchmarks.cloud_profile.run", "step times of cloud models, on this machine's accelerator"
    ),
    "fleet": Command("benchmarks.fleet.run", "many devices on a few replicas: latency, load, cost and energy"),
    "engines": Command(
        "benchmarks.engines.run", "data types of the cloud's model, and llama.cpp: speed, and what they change"
    ),
    "adaptation": Command(
        "benchmarks.adaptation.run", "overrides that a memory of the cloud's corrections saves, along explored texts"
    ),
    "load": Command("benchmarks.load.run", "many devices on one service: latency, throughput, refusals and memory"),
    "capacity": Command("benchmarks.load.capacity", "devices that a service serves in time, with batches and without"),
    "conditioning": Command(
        "benchmarks.conditioning.run",
        "agreement of drafters, trained or not, with encodings and controls",
    ),
    "beams": Command(
        "benchmarks.beams.run", "beams against one text, and against beams by the large model alone: speed and quality"
    ),
    "adaptive": Command(
        "benchmarks.adaptive.run", "Duo-LLM's study: routes under budgets, oracle, routers and difficulty, from seeds"
    ),
    "concurrent": Command(
        "benchmarks.load.concurrent", "texts that a service writes at the same time: the same ones, and their cost"
    ),
    "ray": Command("benchmarks.load.proxy_overhead", "replicas on Ray Serve: the proxy's cost, and stickiness"),
    "attacks": Command(
        "benchmarks.attacks.run", "a device next to attackers: its text and speed, and the service's memory"
    ),
    "all": Command(
        "benchmarks.report.make_all",
        "every reported speed and its inputs, into benchmarks/results/; continues after an interruption",
    ),
}
