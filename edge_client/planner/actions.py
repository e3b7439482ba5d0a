"""The actions of a planner, and its decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class DraftToken:
    """Draft one token in one forward: of the text, of each branch that begins at these positions, or of both."""

    text: bool = True
    branches: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Feed the device's model the tokens that the cloud has written, so that drafting can resume at once."""


class BranchPrefix(NamedTuple):
    """The first `tokens` tokens of the branch that begins at `start`; 1 is the runner-up, which needs no draft."""

    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send the oldest unsent tokens, all or the first `tokens`, with these branches next to them.

    If the cloud overrides one of them, it may write up to `continuation_tokens` more by itself.
    """

    tokens: int | None = None
    continuation_tokens: int = 0
    branches: tuple[BranchPrefix, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until the cloud answers."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Ask the cloud to write `tokens` tokens by itself."""

    tokens: int


@dataclass(frozen=True, slots=True)
class DraftForest:
    """With beams: draft this many texts in each layer, this many layers deep, and send all of it."""

    width: int
    depth: int


Action = DraftToken | CatchUp | Send | Wait | HandOver | DraftForest


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and the reason and figures that it was chosen by; times are in milliseconds."""

    action: Action
    reason: str
    figures: dict[str, float] = field(default_factory=dict)
