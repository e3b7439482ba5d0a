"""The models of a pair as a recorded file names them, and whether two records mean the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import SPECIAL_TOKENS_NAME, load_manifest
from chaperone_common.errors import ConfigError

_GRAPH, _WEIGHTS = "model.onnx", "model.onnx.data"


def models_of(pair: str) -> dict[str, Any]:
    """Return the models of a pair as they stand in a header."""
    manifests = {role: load_manifest(pair_folder(pair, role), role=role) for role in ("edge", "cloud")}
    return {
        role: {"model": manifest.model, "files": {name: file.sha256 for name, file in manifest.files.items()}}
        for role, manifest in manifests.items()
    }


def check_models(path: Path, recorded: Mapping[str, Any], pair: str, *, remedy: str) -> None:
    """Raise ConfigError if a file was recorded with other models than those of the pair here."""
    if different := differences(recorded, models_of(pair)):
        raise ConfigError(
            f"{path}: its models are others than those of pair {pair!r} here ({', '.join(different)}); {remedy}"
        )


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the names and files in which two pairs differ; an empty list means the same weights and tokenizers.

    Two files may differ, because their bytes depend on the version of the exporter: the special tokens, and the graph
    of a model whose weights lie in a file of their own.
    """
    return [
        f"{role} {name}"
        for role in sorted({*recorded, *here})
        for name in _different_names(_facts(recorded.get(role, {})), _facts(here.get(role, {})))
    ]


def _facts(model: Mapping[str, Any]) -> dict[str, Any]:
    files = model.get("files", {})
    compared = {name: digest for name, digest in files.items() if name != SPECIAL_TOKENS_NAME}
    if _WEIGHTS in files:
        compared.pop(_GRAPH, None)
    return {"name": model.get("model"), **compared}


def _different_names(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*recorded, *here} if recorded.get(name) != here.get(name))
