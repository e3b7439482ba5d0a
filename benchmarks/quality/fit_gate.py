"""Fit a gate to explored texts: `python -m benchmarks fit-gate --explored code.jsonl.gz --gate gate.onnx`.

The gate is the one that `chaperone calibrate` makes of the same prompts, without asking the models again. The texts are
the cloud's own, as explored by `python -m benchmarks quality --suite code --strategies cloud --read-along`.
"""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.kit.pair_models import check_models
from benchmarks.kit.provenance import provenance
from benchmarks.quality.exploration.text_tree import load_trees
from benchmarks.quality.judged_texts import JudgedText
from benchmarks.quality.task_suites import PROMPT_SETS, tasks_of
from benchmarks.traces.record import sha256_of
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from edge_client import EdgeClient, EdgeConfig
from edge_client.apps.calibration.fitting import export, fit, judged_tokens
from edge_client.config import GateSettings
from edge_client.gate.gate_model import GateData, GatedModel, GateModel

SUITE = "code"  # for gates alone; no result is reported on it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--explored", type=Path, required=True, help="explored texts: *.jsonl.gz")
    parser.add_argument("--gate", type=Path, required=True, help="the file to write")
    parser.add_argument("--pair", default="default")


def run(args: argparse.Namespace) -> dict[str, Any]:
    header, trees = load_trees(args.explored)
    if header.get("suite") != SUITE:
        raise ConfigError(f"{args.explored}: explored on another suite than {SUITE}; explore again")
    check_models(args.explored, header.get("models", {}), args.pair, remedy="explore again")
    edge, cloud = (load_manifest(pair_folder(args.pair, role), role=role) for role in ("edge", "cloud"))
    client = EdgeClient(EdgeConfig(pair=args.pair, gate=GateSettings(file=None)))
    try:
        known = [trees[task.id] for task in tasks_of(SUITE) if task.id in trees]
        texts = [JudgedText.of(tree, edge.eos_token_ids, int(header["max_new_tokens"])) for tree in known]
        features = [text.features(client.token_text) for text in texts]
    finally:
        asyncio.run(client.aclose())
    tokens = judged_tokens(features, [[bool(one) for one in text.overridden] for text in texts])
    prompts = PROMPT_SETS / f"{SUITE}.jsonl"
    gate = export(
        fit(tokens),
        tokens,
        edge=GatedModel(name=edge.model, digest=edge.digest),
        cloud=GatedModel(name=cloud.model, digest=cloud.digest),
        data=GateData(
            prompts=prompts.name,
            prompts_sha256=sha256_of(prompts),
            texts=len(texts),
            tokens=len(tokens.overridden),
            overrides=int(tokens.overridden.sum()),
            temperature=0.0,
            seed=0,
        ),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    args.gate.parent.mkdir(parents=True, exist_ok=True)
    args.gate.write_bytes(gate)
    card = GateModel.load(args.gate, edge).card
    return {
        "benchmark": "fit-gate",
        **provenance(),
        "settings": {"pair": args.pair, "explored": header},
        "summary": {"data": card.data.model_dump(), "figures": card.figures, "bytes": len(gate)},
    }
