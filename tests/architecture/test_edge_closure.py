"""The packages that `pip install chaperone-llm[edge]` installs, read from the installed distributions."""

from __future__ import annotations

import tomllib
from pathlib import Path

from benchmarks.kit.distributions import closure

PYPROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
UNWANTED = {"accelerate", "onnxruntime-genai", "optimum", "torch", "transformers"}


def test_the_device_installs_neither_torch_nor_transformers() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    on_device = closure([*project["dependencies"], *project["optional-dependencies"]["edge"]])
    assert {"numpy", "onnxruntime", "tokenizers", "grpcio"} <= on_device
    assert not on_device & UNWANTED


def test_the_closure_would_find_torch() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert {"torch", "transformers"} <= closure(project["optional-dependencies"]["cloud"])
