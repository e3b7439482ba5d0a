"""Importing the device SDK loads only what it needs, and the commands print their help without any model library.

The loaded libraries decide the time of an import on any machine, so the test names all that may be loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

DATA = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection", "yaml"}
DEVICE = DATA | {"google", "grpc", "jinja2", "markupsafe", "numpy", "onnxruntime", "tokenizers"}
OF_GRPC = {"grpc_health", "grpc_reflection", "grpc_tools"}  # gRPC loads these by itself if they are installed

IMPORT_SDK = "import edge_client"
DEVICE_HELP = "from edge_client.apps.cli.main import main; main(['generate', '--help'])"
LINK_HELP = "from link_emulator.command import main; main(['run', '--help'])"
IMPORT_ARTEFACTS = "from chaperone_common.artefacts import fetch, folders, manifest, registry, sources, vocabulary"
SERVE_HELP = "from cloud_supervisor.cli import main; main(['serve', '--help'])"
PULL_HELP = "from cloud_supervisor.cli import main; main(['models', 'pull', '--help'])"

LOADED = """
import contextlib, io, json, sys
before = {{*sys.modules}}
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    {statement}
loaded = sys.modules.keys() - before
print(json.dumps([name for name in loaded if getattr(sys.modules[name], "__spec__", None)]))
"""


def output_of(program: str, *arguments: str) -> Any:
    """Return the JSON that a program prints in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return json.loads(subprocess.check_output([sys.executable, "-c", program, *arguments], env=environment))


def packages_loaded(statement: str) -> set[str]:
    """Return the packages that a statement loads, without the standard library and private modules."""
    modules: list[str] = output_of(LOADED.format(statement=statement))
    packages = {module.partition(".")[0] for module in modules}
    return {package for package in packages - sys.stdlib_module_names if not package.startswith("_")}


@pytest.mark.parametrize(
    ("statement", "own", "libraries"),
    [
        (IMPORT_SDK, {"chaperone_common", "edge_client"}, DEVICE),
        (DEVICE_HELP, {"chaperone_common", "edge_client"}, DEVICE),
        (LINK_HELP, {"chaperone_common", "link_emulator"}, DATA | {"numpy"}),
        (IMPORT_ARTEFACTS, {"chaperone_common"}, DATA),
        (SERVE_HELP, {"chaperone_common", "cloud_supervisor"}, DATA),
        (PULL_HELP, {"chaperone_common", "cloud_supervisor"}, DATA),
    ],
    ids=["sdk", "chaperone generate", "chaperone-link", "artefacts", "chaperone-cloud serve", "chaperone-cloud models"],
)
def test_only_needed_packages_are_loaded(statement: str, own: set[str], libraries: set[str]) -> None:
    loaded = packages_loaded(statement)
    assert own <= loaded
    assert loaded - own - OF_GRPC <= libraries
