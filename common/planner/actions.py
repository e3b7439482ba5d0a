"""What a planner can want, and why it wanted it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Draft:
    """Write one more token: of the text, of the branches that begin at these positions, or of both in one forward."""

    text: bool = True
    branches: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Read what the cloud has written, so that drafting can resume at once."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the oldest unsent tokens, all unless `tokens` says how many.

    If the cloud overrides one of them it may write up to `continuation_tokens` more by itself.
    """

    tokens: int | None = None
    continuation_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is worth doing until the cloud answers."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Ask the cloud to write this many tokens by itself."""

    tokens: int


Action = Draft | CatchUp | Send | Wait | HandOver


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and in numbers what spoke for it; times are in milliseconds."""

    action: Action
    reason: str
    figures: dict[str, float] = field(default_factory=dict)
