"""What a planner can want, and why it wanted it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class DraftToken:
    """Write one more token: of the text, of the branches that begin at these positions, or of both in one forward."""

    text: bool = True
    branches: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Read what the cloud has written, so that drafting can resume at once."""


class BranchPrefix(NamedTuple):
    """The first `tokens` tokens of the branch that begins at `start`; 1 is the runner-up, which needs no draft."""

    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send the oldest unsent tokens, all unless `tokens` says how many, and these branches beside them.

    If the cloud overrides one of them it may write up to `continuation_tokens` more by itself.
    """

    tokens: int | None = None
    continuation_tokens: int = 0
    branches: tuple[BranchPrefix, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is worth doing until the cloud answers."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Ask the cloud to write this many tokens by itself."""

    tokens: int


Action = DraftToken | CatchUp | Send | Wait | HandOver


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and in numbers what spoke for it; times are in milliseconds."""

    action: Action
    reason: str
    figures: dict[str, float] = field(default_factory=dict)
