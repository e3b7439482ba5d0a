"""The device's model of the tiny pair, or of a family, by the portable recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_common.artefacts.registry import PortableRecipe
from cloud_supervisor.export.build import refuse_missing_packages
from cloud_supervisor.export.conversion import LoadedModel, export_edge

RECIPE = PortableRecipe(exporter="optimum")


def export_portably(loaded: LoadedModel, folder: Path) -> None:
    """Write the graph, or skip the test where Optimum is not installed."""
    pytest.importorskip("optimum.exporters.onnx", reason="the extra `portable` is not installed")
    refuse_missing_packages(portable=True)
    export_edge(loaded, folder, RECIPE, "random")
