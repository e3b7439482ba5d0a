"""An application that uses the device SDK and has packages of its own named `common` and `configs`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

PROGRAM = """
import importlib.util
import json
{imports}
from chaperone_common.settings.packaged import packaged_path
from edge_client import EdgeConfig

import chaperone_common
import cloud_supervisor

found = {{name: importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "link_emulator")}}
print(json.dumps({{
    "own": [common.OWNER, configs.OWNER],
    "installed": [package.__file__ for package in (chaperone_common, cloud_supervisor, edge_client)],
    "defaults": EdgeConfig.load("edge.yaml") == EdgeConfig() == EdgeConfig.load("configs/edge.yaml"),
    "packaged": [packaged_path(name).is_file() for name in ("models.yaml", "links/4g.yaml", "gates/default.onnx")],
    "found": found,
}}))
"""
ORDERS = {
    "own first": "import common, configs, edge_client",
    "ours first": "import edge_client, configs, common",
}


def create_application(folder: Path) -> None:
    """Write an application whose packages have the names of our folders."""
    for name in ("common", "configs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("OWNER = 'the application'\n")
    for name, imports in ORDERS.items():
        (folder / f"{name.replace(' ', '_')}.py").write_text(PROGRAM.format(imports=imports))


def check_application(folder: Path, python: Path) -> None:
    """Run the application and the command of the device in its folder, with the environment of `python`."""
    packages = str(python.parent.parent / "lib")
    for name in ORDERS:
        report = json.loads(_output(folder, str(python), f"{name.replace(' ', '_')}.py"))
        assert report["own"] == ["the application"] * 2
        assert all(file.startswith(packages) for file in report["installed"])
        assert report["defaults"]
        assert report["packaged"] == [True] * 3
        assert report["found"] == {"torch": False, "transformers": False, "link_emulator": False}
    assert "usage: chaperone generate" in _output(folder, str(python.parent / "chaperone"), "generate", "--help")
    assert "usage: chaperone-cloud serve" in _output(folder, str(python.parent / "chaperone-cloud"), "serve", "--help")


def _output(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
