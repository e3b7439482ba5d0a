"""The entry of a user's own pair, checked as far as its files are on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chaperone_common.artefacts.folders import ROLES, Role
from chaperone_common.artefacts.own_pairs import add_pair
from chaperone_common.artefacts.registry import (
    CloudModel,
    CloudRecipe,
    EdgeModel,
    EdgeRecipe,
    Pair,
    PortableRecipe,
    PretrainedSource,
)
from chaperone_common.artefacts.sources import source_of_text
from chaperone_common.errors import TokenizerMismatch
from cloud_supervisor.export.build import adapter_file, refuse_missing_packages
from cloud_supervisor.pairs.models import PairModel, temporary_models

_UNSTATED = "not stated"


def own_pair(
    edge: str,
    cloud: str,
    *,
    licence: str | None = None,
    recipe: CloudRecipe | None = None,
    portable: bool = False,
    adapter: str | None = None,
    end_of_text: tuple[str, ...] = (),
) -> Pair:
    """Return the pair of two sources, each a folder or the name of a model on a hub; raises ConfigError."""
    small, large = source_of_text(edge, "--edge"), source_of_text(cloud, "--cloud")
    return Pair(
        edge=EdgeModel(
            model=_name_of(small),
            licence=licence or _UNSTATED,
            weights=small,
            recipe=PortableRecipe(exporter="optimum") if portable else EdgeRecipe(),
            adapter=adapter,
        ),
        cloud=CloudModel(
            model=_name_of(large),
            licence=licence or _UNSTATED,
            weights=large,
            recipe=recipe or CloudRecipe(),
            end_of_text=end_of_text,
        ),
        tested=False,
    )


def with_adapter(pair: Pair, adapter: str | None) -> Pair:
    """Return a pair with another adapter, or with none. The gain of its encodings is another one, and not known."""
    edge = pair.edge.model_copy(update={"adapter": adapter, "conditioning_gain": 0.0})
    return pair.model_copy(update={"edge": edge, "tested": False})


def add(name: str, pair: Pair, *, replace: bool = False) -> bool:
    """Check a pair and write it into the user's registry; return False if it is there already.

    Folders are read: an architecture that cannot be converted, and two different vocabularies, are refused, and so is
    an adapter that is not on this machine. No hub is asked. Raises ConfigError, ModelError or TokenizerMismatch, and
    then writes nothing.
    """
    adapter_file(pair.edge)
    if any(_folder_of(pair, role) is not None for role in ROLES):
        refuse_missing_packages(portable=isinstance(pair.edge.recipe, PortableRecipe))
        with temporary_models(pair) as models:
            here = {role: model for role, model in models.items() if _folder_of(pair, role) is not None}
            for model in here.values():
                model.refuse_unsupported()
            if here.keys() == {*ROLES}:
                refuse_different(models)
            pair = _with_architectures(pair, {role: model.architecture for role, model in here.items()})
    return add_pair(name, pair, replace=replace)


def refuse_different(models: Mapping[Role, PairModel]) -> None:
    """Raise TokenizerMismatch if the two models read different vocabularies."""
    edge, cloud = models["edge"].vocabulary, models["cloud"].vocabulary
    if edge.digest != cloud.digest:
        raise TokenizerMismatch(
            f"{models['edge'].name} and {models['cloud'].name} read different vocabularies, so token ids mean "
            f"different things: device {edge.size} ids, {edge.digest}; cloud {cloud.size} ids, {cloud.digest}; "
            "take two models of one family"
        )


def _with_architectures(pair: Pair, found: Mapping[Role, str]) -> Pair:
    edge = pair.edge.model_copy(update={"architecture": found.get("edge")})
    cloud = pair.cloud.model_copy(update={"architecture": found.get("cloud")})
    return pair.model_copy(update={"edge": edge, "cloud": cloud})


def _folder_of(pair: Pair, role: Role) -> Path | None:
    weights = pair.of(role).weights
    return weights.folder if isinstance(weights, PretrainedSource) else None


def _name_of(source: PretrainedSource) -> str:
    """Return the last part of a folder's path or of a name on a hub."""
    return source.name.rstrip("/").rpartition("/")[2] or source.name
