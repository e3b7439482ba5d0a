"""Machine, time and versions of a measurement."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # processor flags that decide the speed of a matrix product
WRITTEN = ("results", "explored")  # folders that benchmarks write to
LIBRARIES = ("numpy", "onnxruntime", "torch", "transformers", "grpcio")


def provenance() -> dict[str, Any]:
    """Return machine, commit, date and versions."""
    return {
        "machine": {
            "cpu": _cpuinfo("model name") or platform.processor(),
            "features": [name for name in FEATURES if name in _cpuinfo("flags").split()],
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _cpuinfo(key: str) -> str:
    """Return a field of the first processor in Linux's list; empty if there is none."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Files that benchmarks write do not count: the steps of `all` write one after the other.
        written = (f":(top,exclude)benchmarks/{folder}" for folder in WRITTEN)
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *written)
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
