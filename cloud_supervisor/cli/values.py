"""The values of flags: each function parses one, and refuses it with a reason."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from chaperone_common.command.parser import CommandParser, refuse
from chaperone_common.settings.packaged import found_config

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"  # argparse has no public name for it

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_LONGEST = timedelta(days=3660)


def yaml_file(text: str) -> Path:
    """Return the path of a YAML file that exists, or of a packaged one."""
    path = found_config(text)
    try:
        problem = "it is empty" if not text else "a folder, not a file" if path.is_dir() else ""
        problem = problem or ("" if path.exists() else "no such file")
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    if problem:
        refuse(text, f"{problem}; give a YAML file")
    return path


def path(text: str) -> Path:
    """Return the path of a file or folder."""
    if not text:
        refuse(text, "it is empty; give a path")
    return Path(text)


def duration(text: str) -> timedelta:
    """Return a time such as 90d, 12h, 30m or 2w."""
    found = re.fullmatch(r"([0-9]{1,7})([mhdw])", text, re.ASCII)
    time = int(found[1]) * _UNITS[found[2]] if found else timedelta()
    if not timedelta() < time <= _LONGEST:
        refuse(text, "not a time such as 90d, 12h or 30m, up to ten years")
    return time
