"""The configuration files that come along: in a checkout as in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_FOLDER = "configs"


def packaged_path(name: str) -> Path:
    """Where a file of the `configs` folder lies, such as `links/4g.yaml`; it need not be there."""
    installed = Path(__file__).resolve().parent / _FOLDER
    folder = installed if installed.is_dir() else installed.parent.parent.parent / _FOLDER
    return folder / name


def packaged_configs() -> list[str]:
    """The YAML files that come along, such as `edge.yaml`, by name."""
    folder = packaged_path("")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def found_config(path: Path | str) -> Path:
    """The file that is meant: `path` if there is one, else the one that comes along under this name.

    The folder's own name may be written or left out: `configs/edge.yaml` is `edge.yaml`.
    """
    given = Path(path)
    name = given.relative_to(_FOLDER) if given.is_relative_to(_FOLDER) else given
    if not given.exists() and name.as_posix() in packaged_configs():
        return packaged_path(name.as_posix())
    return given
