"""The gate that keeps its promises: the ledger of one generation, under the control of its workload."""

from __future__ import annotations

import math
from typing import NamedTuple

from chaperone_common.session import Audited, Committed, Drafted, Retracted, SessionEvent
from chaperone_common.types import Origin, Signal
from edge_client.gate.control import Control
from edge_client.gate.policies import Gate


class Entry(NamedTuple):
    """The counts that one event adds to a ledger."""

    settled: float | None = None  # the risk of a drafted token whose position is now final
    skipped: bool = False  # that token was skipped
    caught: int = 0
    audited: int = 0  # skipped tokens that the cloud has read
    deviations: int = 0  # found among the audited tokens
    expected: float = 0.0  # sum of the risks of the audited tokens
    unasked: float | None = None  # the risk of a final token that fired, and that the cloud must not be asked about


class Ledger:
    """The tokens that a device drafted in one generation, counted from the events of its session.

    A token may be overridden before it is final although it did not fire, because another token did. It counts as
    caught. If skipped tokens `stay_provisional` until the cloud has read them (`OnDeviation.RETRACT`), it counts as a
    deviation that was taken back.

    No promise covers an unverified token, so it counts for none, and neither does its audit.
    """

    def __init__(self, *, stay_provisional: bool = False) -> None:
        self._stay_provisional = stay_provisional
        self.caught = 0
        self.audited = 0
        self.deviations = 0
        self.unread: dict[int, float] = {}  # risks of the skipped positions that no audit has reached
        self._unasked: set[int] = set()  # positions of unverified tokens

    @property
    def most_deviations(self) -> int:
        """The known deviations and all that audits may still find."""
        return self.deviations + len(self.unread)

    def follow(self, event: SessionEvent) -> Entry:
        """Count the next event, and return what it adds."""
        entry = Entry()
        match event:
            case Drafted(position, _, signal, fired):
                if self._stay_provisional and not fired:
                    self.unread[position] = signal.risk
            case Retracted(position):
                self.unread = {at: risk for at, risk in self.unread.items() if at < position}
            case Committed():
                entry = self._settle(event)
            case Audited(start, end, deviations):
                read = [self.unread.pop(position) for position in range(start, end) if position in self.unread]
                found = len(deviations) - sum(position in self._unasked for position in deviations)
                entry = Entry(audited=len(read), deviations=found, expected=math.fsum(read))
        self.caught += entry.caught
        self.audited += entry.audited
        self.deviations += entry.deviations
        return entry

    def _settle(self, event: Committed) -> Entry:
        if event.proposal is None:  # the cloud wrote here before the device did
            return Entry()
        position, risk, overridden = event.position, event.proposal.signal.risk, event.replaced is not None
        if event.origin is Origin.UNVERIFIED:
            self._unasked.add(position)
            return Entry(unasked=risk)
        if not event.origin.judged:
            self.unread[position] = risk
            return Entry(risk, skipped=True)
        if self._stay_provisional and not event.fired:
            self.unread.pop(position, None)
            return Entry(risk, skipped=True, audited=1, deviations=int(overridden), expected=risk)
        return Entry(risk, caught=int(overridden))


class Budgeted(Gate):
    """Asks about every token whose risk is at or above the threshold of its workload."""

    def __init__(self, control: Control, *, stay_provisional: bool = False) -> None:
        """Join the workload of `control`; see `Ledger` for `stay_provisional`."""
        self.ledger = Ledger(stay_provisional=stay_provisional)
        self._control = control
        self._unread = control.register()

    def fires(self, signal: Signal) -> bool:
        return signal.risk >= self._control.threshold

    def follow(self, event: SessionEvent) -> None:
        entry, unread = self.ledger.follow(event), self.ledger.unread
        if len(unread) != self._unread.tokens:
            self._unread.tokens, self._unread.risk = len(unread), math.fsum(unread.values())
        if entry.settled is not None:
            self._control.record_token(entry.settled, skipped=entry.skipped)
        if entry.unasked is not None:
            self._control.record_unasked(entry.unasked)
        if entry.caught:
            self._control.record_caught()
        if entry.audited or entry.deviations:
            weight = event.weight if isinstance(event, Audited) else 1.0
            self._control.record_audit(entry.audited, entry.deviations, expected=entry.expected, weight=weight)

    def close(self) -> None:
        self._control.unregister(self._unread)
