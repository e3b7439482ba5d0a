"""Size and start of a device's installation: `python -m benchmarks footprint`.

mib     files of the wheel, and of all distributions that an extra pulls in on this machine, without compiled bytecode
cpu_ms  processor time of an interpreter that does this, minus that of one that does nothing
peak_mib  its largest resident memory, with the interpreter's own

The starts run in turns. The first round fills the caches and is not counted; numbers are medians of the others. Sizes
are those of this environment, and differ a little between versions of Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.kit.distributions import closure, installed_bytes
from benchmarks.kit.processes import ROOT
from benchmarks.kit.provenance import provenance
from chaperone_common.errors import ConfigError

_COMMAND = "import sys; sys.argv = {arguments}; from chaperone_common.command.entry import device; device()"
STARTS = {
    "nothing": "pass",
    "import": "import edge_client",
    "version": _COMMAND.format(arguments=["chaperone", "--version"]),
    "serve_help": _COMMAND.format(arguments=["chaperone", "serve", "--help"]),
}
# Reported by the process itself: to its parent, Linux counts the memory that it had before it became an interpreter.
_PEAK = """
import atexit, pathlib, sys
atexit.register(lambda: sys.stderr.write(pathlib.Path("/proc/self/status").read_text()))
"""
EXTRAS = {"edge": ("edge",), "edge_serve": ("edge", "serve")}  # as `pip install chaperone-llm[edge,serve]`


class Start(NamedTuple):
    """The cost of one process."""

    cpu_ms: float
    peak_mib: float


def started(statement: str) -> Start:
    """Run an interpreter and return its cost; raises ConfigError if it fails."""
    command = [sys.executable, "-c", _PEAK + statement]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as pipe:
        reported = pipe.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ConfigError(f"footprint: `{statement}` ended with exit code {process.returncode}")
    return Start((usage.ru_utime + usage.ru_stime) * 1e3, _peak_mib(reported))


def _peak_mib(status: str) -> float:
    """Return the largest resident memory in Linux's status of a process."""
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def starts(rounds: int) -> dict[str, float]:
    """Return the medians of all starts, in turns."""
    costs: dict[str, list[Start]] = {name: [] for name in STARTS}
    for number in range(rounds + 1):
        for name, statement in STARTS.items():
            cost = started(statement)
            if number > 0:
                costs[name].append(cost)
    cpu_ms = {name: statistics.median(one.cpu_ms for one in each) for name, each in costs.items()}
    summary = {f"{name}_cpu_ms": cpu_ms[name] - cpu_ms["nothing"] for name in STARTS if name != "nothing"}
    peaks = {f"{name}_peak_mib": statistics.median(one.peak_mib for one in each) for name, each in costs.items()}
    return summary | peaks


def wheel_bytes(project: Path = ROOT) -> int:
    """Return the bytes that the project's wheel installs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
        subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return sum(entry.file_size for entry in archive.infolist())


def sizes(project: Path = ROOT) -> dict[str, dict[str, int]]:
    """Return the bytes of each distribution, by the extras that pull it in."""
    table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = wheel_bytes(project)
    found = {}
    for name, extras in EXTRAS.items():
        optional = [text for extra in extras for text in table["optional-dependencies"][extra]]
        installed = {each: installed_bytes(each) for each in sorted(closure([*table["dependencies"], *optional]))}
        found[name] = {table["name"]: own, **installed}
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks footprint`."""
    parser.add_argument("--rounds", type=int, default=9, help="starts of each kind")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the numbers and the settings."""
    if args.rounds < 1:
        raise ConfigError(f"rounds: {args.rounds}; give at least 1")
    measured, found = provenance(), sizes()
    totals = {f"{name}_mib": sum(each.values()) / 2**20 for name, each in found.items()}
    totals["own_mib"] = next(iter(found["edge"].values())) / 2**20
    return {
        "benchmark": "footprint",
        **measured,
        "settings": {"rounds": args.rounds},
        "distributions": found,
        "summary": {name: round(value, 2) for name, value in (totals | starts(args.rounds)).items()},
    }
