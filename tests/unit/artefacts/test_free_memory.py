"""The free memory is that of the machine, or of the control groups of a container if that is less."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cloud_supervisor.pairs.free_memory import free_bytes

V2_GROUPS = "0::/pods/one\n"
V1_GROUPS = "9:name=systemd:/\n4:cpu,memory:/docker/one\n0::/\n"
NO_LIMIT_V1 = "9223372036854771712"


def machine(root: Path, groups: str, files: Mapping[str, str]) -> Path:
    """Write `proc` and `sys` of a machine with 8 MiB free."""
    written = {"proc/meminfo": "MemTotal: 16384 kB\nMemAvailable:    8192 kB\n", "proc/self/cgroup": groups}
    for name, text in {**written, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


def v2(folder: str, limit: str, usage: int, cache: int = 0) -> dict[str, str]:
    stat = f"file {cache + 5}\nslab_inactive_file 1\ninactive_file {cache}\n"
    return {f"{folder}memory.max": f"{limit}\n", f"{folder}memory.current": f"{usage}\n", f"{folder}memory.stat": stat}


def v1(folder: str, limit: str, usage: int, cache: int = 0) -> dict[str, str]:
    return {
        f"memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{folder}memory.usage_in_bytes": f"{usage}\n",
        f"memory/{folder}memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 8 << 20),
        (V2_GROUPS, v2("", "max", 5), 8 << 20),
        (V2_GROUPS, v2("", "5000", 3000), 2000),  # a container sees its own group at the mount
        (V2_GROUPS, v2("", "5000", 3000, cache=700), 2700),
        (V2_GROUPS, v2("", "5000", 6000), 0),
        (V2_GROUPS, v2("pods/one/", "max", 10) | v2("pods/", "900", 100), 800),
        (V2_GROUPS, v2("pods/other/", "900", 100), 8 << 20),
        (V1_GROUPS, v1("", NO_LIMIT_V1, 5), 8 << 20),
        (V1_GROUPS, v1("", "5000", 3000, cache=700), 2700),
        (V1_GROUPS, v1("", NO_LIMIT_V1, 5) | v1("docker/one/", "900", 100), 800),
    ],
)
def test_the_least_of_all_limits_counts(tmp_path: Path, groups: str, files: dict[str, str], free: int) -> None:
    assert free_bytes(machine(tmp_path, groups, files)) == free
