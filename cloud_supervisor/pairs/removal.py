"""The removal of a pair: its converted models, and on request its entry in the user's registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chaperone_common.artefacts.fetch import joined_file
from chaperone_common.artefacts.folders import ROLES, Role, chaperone_home, pairs_on_disk
from chaperone_common.artefacts.own_pairs import forget_pair, refuse_foreign
from chaperone_common.artefacts.registry import Pair, WheelsSource, load_own_pairs, load_registry
from chaperone_common.errors import ConfigError
from chaperone_common.suggestion import nearest
from cloud_supervisor.export.failures import as_model_errors
from cloud_supervisor.export.patience import Say
from cloud_supervisor.export.workplace import Workplace


@dataclass(frozen=True)
class Removed:
    """The result of a removal, and the files and entries that stay."""

    model_bytes: Mapping[Role, int]  # size of each model that was here
    forgotten: bool  # the entry was removed, too
    has_entry: bool  # the user's registry still has the pair
    downloads: tuple[Path, ...]  # of its weights, from which the next pull makes the models again


def remove(name: str, *, forget: bool = False, say: Say) -> Removed:
    """Remove both models of a pair from this machine; with `forget` also the user's own entry in the registry.

    Downloads and sources stay. Waits while a pull of the pair is at work. A removal that dies leaves no half of a model
    in its place, and can be run again. Raises ConfigError for a pair of which nothing is here, and for an entry that is
    not the user's; ModelError if the disk refuses.
    """
    home, pair = chaperone_home(), load_registry().pairs.get(name)
    workplace = Workplace(home / "models", name)
    if forget:
        refuse_foreign(name)
    elif not workplace.has_any():
        raise ConfigError(_nothing_here(name))
    sizes: dict[Role, int] = {}
    with as_model_errors(f"{name}: cannot be removed", home):
        if workplace.has_any():
            with workplace.locked(say):
                sizes = {role: _size(folder) for role in ROLES if (folder := workplace.final / role).is_dir()}
                workplace.remove()
    if forget:
        forget_pair(name)
    return Removed(sizes, forget, name in load_own_pairs(), _downloads(pair, home))


def _downloads(pair: Pair | None, home: Path) -> tuple[Path, ...]:
    sources = [] if pair is None else [pair.of(role).weights for role in ROLES]
    joined = [joined_file(source, home / "downloads") for source in sources if isinstance(source, WheelsSource)]
    return tuple(file for file in dict.fromkeys(joined) if file.is_file())  # both models may be of one file


def _nothing_here(name: str) -> str:
    here, known = pairs_on_disk(), load_registry().pairs
    if name in known:
        own = "; --forget removes its entry in your models.yaml" if name in load_own_pairs() else ""
        return f"NAME: no model of {name!r} is on this machine{own}"
    near = nearest(name, sorted({*here, *known}))
    return f"NAME: no pair {name!r} is on this machine or in models.yaml{near}; `chaperone-cloud models list` shows all"


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
