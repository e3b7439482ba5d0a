"""The folders of pulled models on this machine."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Literal, get_args

from chaperone_common.errors import ConfigError, ModelError

Role = Literal["edge", "cloud"]
ROLES: tuple[Role, ...] = get_args(Role)

PAIR_NAME = r"[a-z0-9][a-z0-9_-]*"  # a regular expression


def chaperone_home() -> Path:
    """Return the folder of all files that Chaperone keeps.

    This is $CHAPERONE_HOME, or `chaperone` in the user's cache folder. The folder may be absent. Raises ConfigError for
    a path that no folder can have.
    """
    chosen = os.environ.get("CHAPERONE_HOME")
    if not chosen:
        return _checked_home(_cache_folder() / "chaperone", "the user's cache folder")
    try:
        path = Path(chosen).expanduser()
    except RuntimeError:
        raise ConfigError(f"CHAPERONE_HOME: {chosen!r} names a user who is not known here") from None
    if not path.is_absolute():
        raise ConfigError(f"CHAPERONE_HOME: {chosen!r} is relative; give the whole path, such as {path.absolute()}")
    return _checked_home(path, "CHAPERONE_HOME")


def _cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if cache.is_absolute():  # its specification says that a relative path is ignored
        return cache
    try:
        return Path.home().absolute() / ".cache"
    except RuntimeError:
        raise ConfigError("CHAPERONE_HOME: not set, and this user has no home folder; set it to a folder") from None


def _checked_home(path: Path, setting: str) -> Path:
    remedy = "set CHAPERONE_HOME to a folder of yours"
    for folder in (path, *path.parents):
        try:
            is_folder = stat.S_ISDIR(folder.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue  # the first pull makes it, or a folder above it has the problem
        except OSError as error:
            raise ConfigError(f"{setting}: {str(path)!r} cannot be used: {error.strerror}; {remedy}") from None
        if not is_folder:
            raise ConfigError(f"{setting}: {str(path)!r} cannot be used: {folder} is not a folder; {remedy}")
        break
    return path


def is_pair_name(name: str) -> bool:
    """Return whether a pair of models can have this name."""
    return re.fullmatch(PAIR_NAME, name) is not None


def pair_folder(pair: str, role: Role) -> Path:
    """Return the folder of one pair's device ("edge") or cloud model; raises ConfigError for a malformed name."""
    if not is_pair_name(pair):
        raise ConfigError(f"pair: {pair!r} is not a name of lower-case letters, digits, '-' and '_'")
    return chaperone_home() / "models" / pair / role


def pairs_on_disk(role: Role | None = None) -> list[str]:
    """Return the pairs of which there are files on this machine, whole or not, by name; those of one end with `role`.

    Raises ConfigError or ModelError.
    """
    models = chaperone_home() / "models"
    try:
        return sorted(
            path.name for path in models.iterdir() if is_pair_name(path.name) and (path / (role or "")).is_dir()
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ModelError(f"{models}: cannot be read: {error.strerror}; CHAPERONE_HOME names its folder") from None
