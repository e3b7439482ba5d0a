"""The share of signals in a draft step is measured for any pair, with a gate and without."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.measured.device import signals_share
from benchmarks.traces.record import device_model
from chaperone_common.artefacts.manifest import load_manifest
from edge_client.gate.risk import CalibratedRisk
from tests.support.device.gate import gate_for


def test_the_parts_of_a_step_are_measured(tiny_pair: Path, tmp_path: Path) -> None:
    manifest = load_manifest(tiny_pair / "edge", role="edge")
    model = device_model("tiny", manifest)
    prompt = [5, 6, 7]
    risk = CalibratedRisk(gate_for(tiny_pair, tmp_path / "gate.onnx"), str, len(prompt))
    plain, gated = (asyncio.run(signals_share(model, prompt, 8, one)) for one in (None, risk))
    model.close()
    assert plain.keys() == gated.keys() == {"step_ms", "signals_ms", "risk_ms", "signals_share"}
    assert all(value > 0 for value in gated.values())
    assert gated["risk_ms"] > plain["risk_ms"], "a graph is run for each token"
