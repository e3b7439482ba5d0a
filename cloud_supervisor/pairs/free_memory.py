"""The memory that this process may still take: that of the machine, or of its container if that is less."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_MEMINFO = Path("proc/meminfo")  # of Linux
_OWN_GROUPS = Path("proc/self/cgroup")
_MOUNT = Path("sys/fs/cgroup")


class _Files(NamedTuple):
    """The names of a control group's files, in one version of them."""

    limit: str
    usage: str  # with the cache of files
    cache: str  # the line of memory.stat with the cache that the system would give up first


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def free_bytes(root: Path = Path("/")) -> int:
    """Return the memory that is free, with the cache of files that the system would give up.

    `root` holds `proc` and `sys`.
    """
    return min([_of_machine(root), *_of_groups(root)])


def _of_machine(root: Path) -> int:
    with suppress(OSError):
        if (found := _number(root / _MEMINFO, r"MemAvailable:\s+(\d+) kB")) is not None:
            return found * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what is left below the limit of each control group that holds this process."""
    with suppress(OSError):
        for line in (root / _OWN_GROUPS).read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                mount, files = root / _MOUNT, _V2
            elif "memory" in controllers.split(","):
                mount, files = root / _MOUNT / "memory", _V1
            else:
                continue
            group = PurePosixPath(path.lstrip("/"))
            # A container sees its own group at the mount, though its path may be the one that the machine sees.
            for folder in {mount, *(mount / one for one in (group, *group.parents))}:
                if (left := _left(folder, files)) is not None:
                    yield left


def _left(group: Path, files: _Files) -> int | None:
    """Return the bytes left of a limit; None if there is no limit."""
    with suppress(OSError):
        limit, usage = (_number(group / name, r"(\d+)") for name in (files.limit, files.usage))
        if limit is not None and usage is not None:  # v2 writes `max` for no limit, and v1 a number above any memory
            return max(limit - usage + (_number(group / "memory.stat", rf"{files.cache} (\d+)") or 0), 0)
    return None


def _number(file: Path, pattern: str) -> int | None:
    """Return the number on the line of a file that matches."""
    found = re.search(rf"^{pattern}$", file.read_text(encoding="ascii"), re.MULTILINE)
    return None if found is None else int(found[1])
