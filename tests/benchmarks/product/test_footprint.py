"""Installed size and import time are reported with machine, commit and date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.product.footprint import started
from chaperone_common.errors import ConfigError


def test_sizes_and_starts_are_reported(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert main(["footprint", "--rounds", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"machine", "commit", "date", "settings"} <= result.keys()
    edge, serve = result["distributions"]["edge"], result["distributions"]["edge_serve"]
    assert {"chaperone-llm", "numpy", "onnxruntime", "grpcio"} <= edge.keys() < serve.keys()
    assert "torch" not in serve
    assert all(size > 0 for size in serve.values())
    summary = result["summary"]
    assert summary["own_mib"] < summary["edge_mib"] < summary["edge_serve_mib"]
    assert summary["import_cpu_ms"] > 0
    assert summary["nothing_peak_mib"] < summary["import_peak_mib"]


def test_a_start_that_fails_is_reported() -> None:
    with pytest.raises(ConfigError, match="ended with exit code 3"):
        started("raise SystemExit(3)")
