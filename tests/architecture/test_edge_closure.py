"""What `pip install chaperone-llm[edge]` brings onto a device, read from the installed distributions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
UNWANTED = {"accelerate", "onnxruntime-genai", "optimum", "torch", "transformers"}


def closure(requirements: Iterable[str]) -> set[str]:
    """Canonical names of all that these requirements pull in, on this machine."""
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(text), extra) for text in requires(name) or ()]
    return {name for name, _ in seen}


def test_the_device_gets_neither_torch_nor_transformers() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    on_device = closure([*project["dependencies"], *project["optional-dependencies"]["edge"]])
    assert {"numpy", "onnxruntime", "tokenizers", "grpcio"} <= on_device
    assert not on_device & UNWANTED


def test_the_closure_would_find_torch() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert {"torch", "transformers"} <= closure(project["optional-dependencies"]["cloud"])
