"""Gates for the tiny pair, fitted to synthetic tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chaperone_common.artefacts.manifest import load_manifest
from edge_client.apps.calibration.fitting import export, fit, judged_tokens
from edge_client.gate import FEATURES
from edge_client.gate.gate_model import GateData, GatedModel, GateModel

DATA = GateData(prompts="p.jsonl", prompts_sha256="0" * 64, texts=1, tokens=1, overrides=1, temperature=0.0, seed=0)


def synthetic(texts: int = 24, tokens: int = 120, seed: int = 1) -> tuple[list[list[list[float]]], list[list[bool]]]:
    """Return features and overrides of texts: the margin predicts the overrides, another feature does not."""
    random = np.random.default_rng(seed)
    features, overridden = [], []
    for _ in range(texts):
        rows = random.normal(size=(tokens, len(FEATURES)))
        rows[:, 0] = random.normal(1.0, 1.5, tokens)
        features.append(rows.tolist())
        overridden.append((random.random(tokens) < 1 / (1 + np.exp(2.5 * rows[:, 0]))).tolist())
    return features, overridden


def gate_for(tiny_pair: Path, path: Path) -> GateModel:
    manifest, cloud = (load_manifest(tiny_pair / role, role=role) for role in ("edge", "cloud"))
    tokens = judged_tokens(*synthetic())
    path.write_bytes(
        export(
            fit(tokens),
            tokens,
            edge=GatedModel(name=manifest.model, digest=manifest.digest),
            cloud=GatedModel(name=cloud.model, digest=cloud.digest),
            data=DATA,
            made_at="2026-01-01",
        )
    )
    return GateModel.load(path, manifest)
