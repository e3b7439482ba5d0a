"""The layers of imports: the contracts of pyproject.toml hold, and so do the rules that they cannot express.

`lint-imports` checks the layers and one library per adapter. It has no word for "nothing but the standard library and
NumPy", which is the rule of common/ outside its rim: that is checked here. Clocks and randomness are banned from
common/, edge_client/planner/ and edge_client/gate/ by their ruff.toml.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COMMON = "common/chaperone_common"
PACKAGES = (COMMON, "edge_client", "cloud_supervisor", "link_emulator", "benchmarks", "training", "adaptive")
RIM = ("clock", "settings", "artefacts", "wire", "pb")
COMPLETION = Path("command", "completion.py")  # the adapter of shtab
PURE = {*sys.stdlib_module_names, "numpy", "chaperone_common"}
IMPURE = re.compile(r"chaperone_common\.(settings|artefacts|wire|pb)\b")


def foreign_imports(common: Path) -> Iterator[str]:
    """Return `file:line: module` for imports of common/, outside its rim, beyond the standard library and NumPy."""
    for path in sorted(common.rglob("*.py")):
        relative = path.relative_to(common)
        if relative.with_suffix("").parts[0] in RIM or relative == COMPLETION:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Import(names):
                    modules = [alias.name for alias in names]
                case ast.ImportFrom(str(module), names, level=0):
                    modules = [f"{module}.{alias.name}" for alias in names]
                case _:
                    continue
            for module in modules:
                if module.partition(".")[0] not in PURE or IMPURE.match(module):
                    yield f"{COMMON}/{relative}:{node.lineno}: {module}"


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run `lint-imports` on the packages below `tree`, which take precedence over the installed ones."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "common")]), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the packages in which tests plant violations."""
    copied = tmp_path_factory.mktemp("tree")
    shutil.copyfile(REPOSITORY / "pyproject.toml", copied / "pyproject.toml")
    for package in PACKAGES:
        shutil.copytree(
            REPOSITORY / package, copied / package, ignore=shutil.ignore_patterns("__pycache__", "*.gz", "results")
        )
    return copied


@contextmanager
def planted(tree: Path, *violations: tuple[str, str]) -> Iterator[None]:
    """Append lines to files of the tree, each given as file and line, until the block ends."""
    before = {file: (tree / file).read_text(encoding="utf-8") for file, _ in violations}
    try:
        for file, line in violations:
            with (tree / file).open("a", encoding="utf-8") as module:
                module.write(f"\n{line}\n")
        yield
    finally:
        for file, text in before.items():
            (tree / file).write_text(text, encoding="utf-8")


def test_common_is_standard_library_and_numpy() -> None:
    assert list(foreign_imports(REPOSITORY / COMMON)) == []


def test_contracts_hold(tree: Path) -> None:
    linted = lint_imports(tree)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("import requests", "requests"),
        ("import pydantic.fields", "pydantic.fields"),
        ("def f() -> None:\n    from torch import nn", "torch.nn"),
        ("from chaperone_common import wire", "chaperone_common.wire"),
        ("from chaperone_common.settings import load_yaml", "chaperone_common.settings.load_yaml"),
    ],
)
def test_a_foreign_import_in_common_is_caught(tree: Path, line: str, culprit: str) -> None:
    with planted(tree, ("common/chaperone_common/session/device.py", line)):
        (found,) = foreign_imports(tree / COMMON)
    assert found.startswith("common/chaperone_common/session/device.py:")
    assert found.endswith(f" {culprit}")


# The id of the contract, the file and the line that break it, and the import that its report names.
VIOLATIONS = (
    ("layers", "cloud_supervisor/supervisor.py", "import edge_client", "cloud_supervisor.supervisor -> edge_client"),
    (
        "layers",
        "edge_client/engine/engine.py",
        "import cloud_supervisor.model.ports",
        "edge_client.engine.engine -> cloud_supervisor.model.ports",
    ),
    (
        "pure",
        "edge_client/planner/adaptive.py",
        "import edge_client.ports",
        "edge_client.planner.adaptive -> edge_client.ports",
    ),
    ("layers", "link_emulator/proxy.py", "import edge_client.ports", "link_emulator.proxy -> edge_client.ports"),
    ("layers", "edge_client/client.py", "import link_emulator.model", "edge_client.client -> link_emulator.model"),
    ("layers", "cloud_supervisor/service.py", "import link_emulator", "cloud_supervisor.service -> link_emulator"),
    ("grpc", "link_emulator/proxy.py", "import grpc", "link_emulator.proxy -> grpc"),
    (
        "layers",
        f"{COMMON}/sampling.py",
        "import link_emulator.model",
        "chaperone_common.sampling -> link_emulator.model",
    ),
    ("top", "edge_client/client.py", "import benchmarks", "edge_client.client -> benchmarks"),
    ("top", "edge_client/planner/adaptive.py", "import tests.conftest", "edge_client.planner.adaptive -> tests"),
    ("torch", "edge_client/engine/engine.py", "import torch", "edge_client.engine.engine -> torch"),
    (
        "scheduler",
        "cloud_supervisor/scheduling/scheduler.py",
        "import cloud_supervisor.kv.store",
        "cloud_supervisor.scheduling.scheduler -> cloud_supervisor.kv.store",
    ),
    ("torch", "cloud_supervisor/scheduling/runner.py", "import torch", "cloud_supervisor.scheduling.runner -> torch"),
    ("torch", "cloud_supervisor/service.py", "import transformers", "cloud_supervisor.service -> transformers"),
    ("onnxruntime", "edge_client/text/prompt.py", "import onnxruntime", "edge_client.text.prompt -> onnxruntime"),
    ("grpc", "edge_client/engine/engine.py", "import grpc", "edge_client.engine.engine -> grpc"),
    ("grpc", "cloud_supervisor/supervisor.py", "import grpc.aio", "cloud_supervisor.supervisor -> grpc"),
    ("text", "edge_client/client.py", "import tokenizers", "edge_client.client -> tokenizers"),
    ("text", "cloud_supervisor/service.py", "import jinja2", "cloud_supervisor.service -> jinja2"),
    (
        "protobuf",
        "edge_client/link/grpc_link.py",
        "from chaperone_common.pb.chaperone.v1 import supervision_pb2",
        "edge_client.link.grpc_link -> chaperone_common.pb.chaperone.v1.supervision_pb2",
    ),
    ("protobuf", "common/chaperone_common/frames.py", "import google.protobuf", "chaperone_common.frames -> google"),
    ("yaml", "common/chaperone_common/settings/models.py", "import yaml", "chaperone_common.settings.models -> yaml"),
    (
        "benchmarks",
        "benchmarks/strategies/inexact.py",
        "import benchmarks.virtual.peers",
        "benchmarks.strategies.inexact -> benchmarks.virtual.peers",
    ),
    ("circles", "benchmarks/cloud_profile/types.py", "import benchmarks.cloud_profile.run", ".types -> .run"),
)


@pytest.fixture(scope="module")
def reports(tree: Path) -> dict[str, str]:
    """Return the report on each broken contract, by its name, with all violations at once.

    Each run of `lint-imports` builds the graph of all imports, which takes seconds.
    """
    with planted(tree, *((file, line) for _, file, line, _ in VIOLATIONS)):
        linted = lint_imports(tree)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    _, *parts = re.split(r"^(.+)\n-+\n", linted.stdout.partition("Broken contracts")[2], flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("contract", "culprit"), [(contract, culprit) for contract, _, _, culprit in VIOLATIONS])
def test_a_planted_violation_is_caught(reports: dict[str, str], contract: str, culprit: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (name,) = [each["name"] for each in project["tool"]["importlinter"]["contracts"] if each["id"] == contract]
    assert culprit in reports[name]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("import time", "TID251"),
        ("from random import random", "TID251"),
        ("import os", "TID251"),
        ("import numpy as np\n\nnp.random.default_rng(1)", "TID251"),
        ("import numpy as np\n\nnp.random.seed(1)", "NPY002"),
        ("import numpy as np\n\nnp.random.Philox(key=[1, 0], counter=[0, 0, 0, 0])", None),
    ],
)
@pytest.mark.parametrize(
    "file", [f"{COMMON}/sampling.py", "edge_client/planner/adaptive.py", "edge_client/gate/control.py"]
)
def test_clocks_and_randomness_in_pure_code_are_caught(tree: Path, file: str, line: str, rule: str | None) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251,NPY", "--output-format=concise"]
    with planted(tree, (file, line)):
        linted = subprocess.run([*command, file], cwd=tree, capture_output=True, text=True, check=False)
    assert linted.returncode == (0 if rule is None else 1), linted.stdout + linted.stderr
    if rule is not None:
        assert file in linted.stdout
        assert rule in linted.stdout
