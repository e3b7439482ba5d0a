"""The gate of a run, and the outcome of each token that it decided on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.session import Audited, Committed, Drafted, Retracted, SessionEvent
from chaperone_common.types import Signal
from edge_client.config import GateSettings
from edge_client.gate import Gate
from edge_client.gate.gate_model import GateModel
from edge_client.gate.gating import load_gate

_DIGITS = 4  # significant digits in a file


def chosen_gate(name: str, manifest: ModelManifest) -> GateModel | None:
    """Return the gate of a name; raise as `load_gate` does."""
    match name:
        case "none":
            return None
        case "auto":
            return load_gate(GateSettings(), manifest)
        case _:
            return load_gate(GateSettings(file=Path(name)), manifest)


class GateDecision(NamedTuple):
    """A token that the device wrote, and the gate's decision."""

    token_id: int
    risk: float
    coupled_margin: float
    fired: bool


class TokenOutcome(NamedTuple):
    """A token that the device wrote at a place of the final text, and if the cloud chose another one there."""

    risk: float
    coupled_margin: float
    fired: bool
    overridden: bool


@dataclass(slots=True)
class RecordingGate(Gate):
    """Decides as another gate does, and records the outcome of each token."""

    gate: Gate
    deviations: set[int] = field(default_factory=set)  # positions reported by audits
    decisions: dict[int, GateDecision] = field(default_factory=dict)  # by position of the present text

    def fires(self, signal: Signal) -> bool:
        return self.gate.fires(signal)

    def close(self) -> None:
        self.gate.close()

    def follow(self, event: SessionEvent) -> None:
        self.gate.follow(event)
        match event:
            case Drafted(position, token_id, signal, fired):
                self.decisions[position] = GateDecision(token_id, signal.risk, signal.coupled_margin, fired)
            case Retracted(position):  # at the position itself the cloud's token takes the place of the device's
                self.decisions = {at: one for at, one in self.decisions.items() if at <= position}
            case Audited():
                self.deviations.update(event.deviations)
            case Committed():
                pass

    def outcomes(self, token_ids: Sequence[int], prompt_length: int) -> list[TokenOutcome | None]:
        """Return the outcome of each token of the final text, [tokens]; None where the cloud wrote before the device.

        All skipped tokens must have been audited.
        """
        return [self._outcome(position, token_id) for position, token_id in enumerate(token_ids, start=prompt_length)]

    def _outcome(self, position: int, token_id: int) -> TokenOutcome | None:
        one = self.decisions.get(position)
        if one is None:
            return None
        overridden = one.token_id != token_id or position in self.deviations
        return TokenOutcome(one.risk, one.coupled_margin, one.fired, overridden)


@dataclass(frozen=True, slots=True)
class OutcomeColumns:
    """The outcomes of one text in the form of a file; `-` in a string where there is none."""

    risks: tuple[float, ...]
    coupled_margins: tuple[float, ...]
    fired: str
    overridden: str

    @classmethod
    def of(cls, outcomes: Sequence[TokenOutcome | None]) -> Self:
        """Return the columns of the outcomes of a text's tokens."""
        known = [outcome for outcome in outcomes if outcome is not None]
        return cls(
            tuple(_short(outcome.risk) for outcome in known),
            tuple(_short(outcome.coupled_margin) for outcome in known),
            "".join("-" if outcome is None else str(int(outcome.fired)) for outcome in outcomes),
            "".join("-" if outcome is None else str(int(outcome.overridden)) for outcome in outcomes),
        )

    def known(self) -> list[TokenOutcome]:
        """Return the outcomes of all tokens that have one, in order."""
        fired = (mark == "1" for mark in self.fired if mark != "-")
        overridden = (mark == "1" for mark in self.overridden if mark != "-")
        return [
            TokenOutcome(*columns) for columns in zip(self.risks, self.coupled_margins, fired, overridden, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the columns by name."""
        return {
            "risk": self.risks,
            "coupled_margin": self.coupled_margins,
            "fired": self.fired,
            "overridden": self.overridden,
        }


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
