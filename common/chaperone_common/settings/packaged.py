"""The packaged configuration files, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_FOLDER = "configs"


def packaged_path(name: str) -> Path:
    """Return the path of a file of the `configs` folder, such as `links/4g.yaml`. It need not exist."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / _FOLDER, package.parents[1] / _FOLDER
    return (installed if installed.is_dir() else checkout) / name


def packaged_configs() -> list[str]:
    """Return the names of all packaged YAML files, such as `edge.yaml`."""
    folder = packaged_path("")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def found_config(path: Path | str) -> Path:
    """Return `path` if it exists, else the packaged file of that name, else `path`.

    The name of the folder is optional: `configs/edge.yaml` is `edge.yaml`.
    """
    given = Path(path)
    name = given.relative_to(_FOLDER) if given.is_relative_to(_FOLDER) else given
    if not given.exists() and name.as_posix() in packaged_configs():
        return packaged_path(name.as_posix())
    return given
