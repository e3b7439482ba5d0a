"""The audit of the tokens that a Close carries."""

from __future__ import annotations

from collections.abc import Iterable

from chaperone_common.session.verdicts import check_deviations


class ClosingAudit:
    """The unread tokens from `start` up to `end`, and the deviations among them that arrive before the answer."""

    def __init__(self, start: int = 0, end: int = 0, share: float = 1.0) -> None:
        """`share` of such generations are audited; with 0 this one is not."""
        self.start = start
        self.end = end if share else start
        self.weight = 1.0 / (share or 1.0)  # generations that this one stands for
        self._late_deviations: set[int] = set()

    @property
    def pending(self) -> bool:
        """True if there are tokens to audit."""
        return self.start < self.end

    def late(self, deviations: Iterable[int]) -> None:
        """Note the deviations of a Verdict that crossed the Close."""
        self._late_deviations.update(position for position in deviations if position in range(self.start, self.end))

    def deviations(self, answered: tuple[int, ...]) -> tuple[int, ...]:
        """Return all deviations, with those of the answer to the Close; raises ProtocolViolation for others."""
        check_deviations(answered, self.start, self.end)
        return tuple(sorted({*self._late_deviations, *answered}))
