"""Names of a measured run: `exact`, `conditioned`, and `exact@distilled` with the device's model of another pair.

The client after an `@` is that of the pair: its device model, and its packaged gate if that fits. The service is the
run's own. So such a pair must share the large model with the run's pair. A device that reads encodings also needs a
service with its projector.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from benchmarks.simulation.strategy import Strategy
from benchmarks.strategies.families import strategy_named
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.artefacts.registry import known_pair_folder
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode

AT = "@"
SettingOfEncodings = Literal["auto", "on", "off"]  # `device.conditioning`


class Asked(NamedTuple):
    """A strategy, and the pair whose device model it uses."""

    strategy: str
    pair: str

    @classmethod
    def of(cls, name: str, own: str) -> Asked:
        """Return the parts of a name; `own` is the run's pair."""
        strategy, at, pair = name.partition(AT)
        return cls(strategy, pair if at else own)


def measured_strategy(name: str) -> Strategy:
    """Return the strategy of a name, whatever its pair; raise as `strategy_named` does."""
    return strategy_named(name.partition(AT)[0], modes=tuple(Mode))


def has_traces(name: str) -> bool:
    """Return whether recorded texts apply: they are of the run's own device model, without encodings."""
    return AT not in name and name != Mode.CONDITIONED


def check_pair(name: str, own: str, setting: SettingOfEncodings) -> None:
    """Check the pair of a name against the service of the run's pair `own`.

    Raises ConfigError if the pair is not known, has another large model, or reads encodings that this service does not
    make. Raises ModelMissing for a pair that was not pulled.
    """
    pair, mode = Asked.of(name, own).pair, measured_strategy(name).mode
    edge = load_manifest(known_pair_folder(pair, "edge"), role="edge")
    cloud, served = (load_manifest(known_pair_folder(each, "cloud"), role="cloud") for each in (pair, own))
    if cloud.digest != served.digest:
        raise ConfigError(
            f"--strategies: {name!r}: the large model of {pair!r} is {cloud.model} ({cloud.digest}), that of --pair "
            f"{own!r} is {served.model} ({served.digest}); name pairs that share it"
        )
    if mode is Mode.CONDITIONED and edge.projector is None:
        raise ConfigError(
            f"--strategies: {name!r}: the device model of {pair!r} reads no encodings; name a pair whose adapter has a "
            "projector"
        )
    if _encodings(edge) and _may_ask(mode, setting) and _encodings(edge) != _encodings(served):
        remedy = "" if mode is Mode.CONDITIONED else ", or --conditioning off"
        raise ConfigError(
            f"--strategies: {name!r}: the device model of {pair!r} reads encodings of {_encodings(edge)}, the service "
            f"of --pair {own!r} makes {_encodings(served) or 'none'}; give --pair {pair}{remedy}"
        )


def _encodings(manifest: ModelManifest) -> str:
    """Return the digest of a model's projector; empty without one."""
    return manifest.projector.digest if manifest.projector is not None else ""


def _may_ask(mode: Mode, setting: SettingOfEncodings) -> bool:
    """Return whether a device with a projector may ask for encodings."""
    return mode is Mode.CONDITIONED or (mode.connects and mode.drafts and setting != "off")
