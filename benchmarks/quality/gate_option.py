"""The option `--gate` of benchmarks, as `gate.file` of a client."""

from __future__ import annotations

import argparse
from pathlib import Path

from chaperone_common.artefacts.manifest import ModelManifest
from edge_client.config import GateSettings
from edge_client.gate.gate_model import GateModel
from edge_client.gate.gating import load_gate


def add_gate_option(parser: argparse.ArgumentParser) -> None:
    """Which calibrated gate tells risks."""
    parser.add_argument("--gate", default="auto", help="a file, `auto` for the one that comes with the pair, or `none`")


def chosen_gate(name: str, manifest: ModelManifest) -> GateModel | None:
    """The gate of that name; raises what `load_gate` does."""
    match name:
        case "none":
            return None
        case "auto":
            return load_gate(GateSettings(), manifest)
        case _:
            return load_gate(GateSettings(file=Path(name)), manifest)
