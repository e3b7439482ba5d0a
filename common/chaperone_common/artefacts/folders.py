"""Where pulled models lie on this machine."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Literal, get_args

from chaperone_common.errors import ConfigError

Role = Literal["edge", "cloud"]
ROLES: tuple[Role, ...] = get_args(Role)

PAIR_NAME = r"[a-z0-9][a-z0-9_-]*"


def chaperone_home() -> Path:
    """Return the folder of everything Chaperone keeps: $CHAPERONE_HOME, or `chaperone` in the user's cache folder.

    Raise ConfigError for a path that no folder can have. The folder itself need not be there yet.
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
    if cache.is_absolute():  # a relative one is to be ignored, says its specification
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
            continue  # made by the first pull, or the next one up tells
        except OSError as error:
            raise ConfigError(f"{setting}: {str(path)!r} cannot be used: {error.strerror}; {remedy}") from None
        if not is_folder:
            raise ConfigError(f"{setting}: {str(path)!r} cannot be used: {folder} is not a folder; {remedy}")
        break
    return path


def pair_folder(pair: str, role: Role) -> Path:
    """The folder of one pair's device ("edge") or cloud model; raises ConfigError for what is no name."""
    if not re.fullmatch(PAIR_NAME, pair):
        raise ConfigError(f"pair: {pair!r} is not a name of lower-case letters, digits, '-' and '_'")
    return chaperone_home() / "models" / pair / role
