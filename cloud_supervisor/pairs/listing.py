"""The list of all pairs, in the registry and on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chaperone_common.artefacts.folders import ROLES, Role, pair_folder, pairs_on_disk
from chaperone_common.artefacts.manifest import MANIFEST_NAME, load_manifest
from chaperone_common.artefacts.registry import Pair, load_registry
from chaperone_common.errors import ModelError, ModelMissing

Presence = Literal["here", "not pulled", "broken"]


@dataclass(frozen=True)
class ArtefactState:
    """The state of one model of a pair on this machine."""

    role: Role
    model: str
    presence: Presence
    problem: str = ""  # reason why a broken model cannot be loaded
    adapter: str | None = None  # merged into it
    projector: bool = False  # whether it reads or writes encodings


@dataclass(frozen=True)
class PairState:
    """The artefacts of a pair on this machine."""

    pair: str
    registered: bool  # False for a pair that is only on disk
    tested: bool  # False if this project has never run the weights
    edge: ArtefactState
    cloud: ArtefactState


def list_pairs(registry_path: Path | None = None) -> list[PairState]:
    """Return all pairs of the registry and on disk, by name; raises ConfigError or ModelError."""
    registry = load_registry(registry_path)
    return [_state_of(name, registry.pairs.get(name)) for name in sorted({*registry.pairs, *pairs_on_disk()})]


def _state_of(name: str, pair: Pair | None) -> PairState:
    models: dict[Role, str] = {} if pair is None else {"edge": pair.edge.model, "cloud": pair.cloud.model}
    edge, cloud = (_artefact(name, role, models.get(role)) for role in ROLES)
    return PairState(name, pair is not None, pair is None or pair.tested, edge, cloud)


def _artefact(name: str, role: Role, registered: str | None) -> ArtefactState:
    folder = pair_folder(name, role)
    try:
        # The command of this machine, also for the device's model: a device would pull it from its cloud.
        remedy = f"run `chaperone-cloud models pull --pair {name} --force`"
        manifest = load_manifest(folder, role=role, remedy=remedy)
    except ModelMissing as error:
        if registered is not None and not folder.is_dir():
            return ArtefactState(role, registered, "not pulled")
        return ArtefactState(role, registered or "?", "broken", str(error))
    except ModelError as error:
        return ArtefactState(role, registered or _name_in(folder / MANIFEST_NAME), "broken", str(error))
    merged = manifest.recipe.get("adapter")
    adapter = merged["name"] if isinstance(merged, dict) else None
    return ArtefactState(role, manifest.model, "here", adapter=adapter, projector=manifest.projector is not None)


def _name_in(manifest: Path) -> str:
    """Return the name of the model in a broken manifest, or "?"."""
    try:
        return str(json.loads(manifest.read_bytes())["model"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "?"
