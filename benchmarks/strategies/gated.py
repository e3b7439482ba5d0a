"""Names of the product's own gate, with any promise, and the calibrated gate of recorded traces.

`gated` keeps both promises, as configured by default. `gated-C` keeps a catch of C alone, `deviation-D` a ceiling of D
on deviations alone. `retract-C` is `gated-C` where deviations are retracted once they are found. `threshold-R` asks
about tokens of risk R and above, and promises nothing.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.simulation.trace import Trace, lacking
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode, OnDeviation, Promises
from edge_client.config import GateSettings
from edge_client.gate.gate_model import GateModel
from edge_client.gate.gating import packaged_gate

GATED_NAMES = ("gated-CATCH", "retract-CATCH", "deviation-CEILING", "threshold-RISK")
PACKAGED, NO_GATE = "auto", "none"  # instead of a gate file
_NAME = re.compile(r"(gated|retract|deviation|threshold)-([0-9]*\.?[0-9]+)", re.ASCII)


def add_gate_option(parser: argparse.ArgumentParser) -> None:
    """Add `--gate`, the calibrated gate that gives risks."""
    parser.add_argument("--gate", default=PACKAGED, help="a file, `auto` for the pair's own, or `none`")


def gate_settings(name: str) -> GateSettings | None:
    """Return the settings that a strategy's name stands for; None if it is no name of the product's own gate.

    Raises InvalidRequest for a promise that is not possible, ConfigError for such a risk.
    """
    if name == Mode.GATED:
        return GateSettings()
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    kind, value = found[1], float(found[2])
    match kind:
        case "threshold":
            if value > 1:
                raise ConfigError(f"strategies: {name!r}: {found[2]} is no probability; give at most 1")
            return GateSettings(policy="threshold", risk=value)
        case "deviation":
            return _keeping(Promises(0.0, value))
        case "retract":
            return _keeping(Promises(value, 1.0), OnDeviation.RETRACT)
        case _:
            return _keeping(Promises(value, 1.0))


def gate_for(trace: Trace, gate: str = PACKAGED) -> GateModel | None:
    """Return the calibrated gate that reads a trace: a file, the one `auto` for its pair, or `none`.

    Returns None if `gate` is `none`, or if no gate is packaged for the pair. Raises ConfigError if the trace lacks the
    values that a gate reads, GateMismatch if the gate was made for another device model.
    """
    if gate == NO_GATE:
        return None
    if trace.device is None:
        raise lacking(trace, "varentropies and token texts")
    path = packaged_gate(trace.device.pair) if gate == PACKAGED else Path(gate)
    if gate == PACKAGED and not path.is_file():
        return None
    return GateModel.load(path, trace.device)


def _keeping(promises: Promises, on_deviation: OnDeviation = OnDeviation.KEEP) -> GateSettings:
    return GateSettings(catch=promises.catch, max_deviation=promises.max_deviation, on_deviation=on_deviation)
