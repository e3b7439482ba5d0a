"""The gate that keeps its promises: one generation's ledger, under the control of its workload."""

from __future__ import annotations

import math
from typing import NamedTuple

from common.gate.control import Control
from common.gate.policies import Gate
from common.session import Audited, Committed, Drafted, Retracted, SessionEvent
from common.types import Origin, Signal

_JUDGED = (Origin.VERIFIED, Origin.OVERRIDE, Origin.BONUS, Origin.TAKEOVER)


class _Drafted(NamedTuple):
    token_id: int
    risk: float
    fired: bool


class Read(NamedTuple):
    """Skipped tokens that were read since: how many, what was found among them, and how much their risks foretold."""

    tokens: int
    deviations: int
    foretold: float


class Ledger:
    """What became of the tokens that a device drafted in one generation, from the events of its session.

    A token that nobody asked about and that was overridden all the same, since another was asked about before it was
    final, is caught. Not so where skipped tokens `stay_provisional` until they are read (`OnDeviation.RETRACT`): there
    it is a deviation that was taken back, and counts as one.
    """

    def __init__(self, *, stay_provisional: bool = False) -> None:
        self._stay_provisional = stay_provisional
        self.caught = 0
        self.audited = 0
        self.deviations = 0
        self.foretold = 0.0  # the risk of all skipped tokens that were read since
        self.unread: dict[int, float] = {}  # the risks of skipped positions that no audit has reached
        self._drafted: dict[int, _Drafted] = {}  # by position that is not final
        self._gone: tuple[int, _Drafted] | None = None  # with its position, one that was just taken back

    @property
    def read(self) -> Read:
        return Read(self.audited, self.deviations, self.foretold)

    @property
    def most_deviations(self) -> int:
        """Those that are known, and all that may yet be found."""
        return self.deviations + len(self.unread)

    def follow(self, event: SessionEvent, *, fired: bool = False) -> float | None:
        """Take in an event, in order; returns the risk of a token that has become final, if it was drafted.

        `fired` says of a drafted token that the gate fired on it.
        """
        match event:
            case Drafted(position, token_id, signal):
                self._drafted[position] = _Drafted(token_id, signal.risk, fired)
            case Retracted(position):
                void = {at: self._drafted.pop(at) for at in sorted(self._drafted) if at >= position}
                self._gone = (position, void[position]) if position in void else None
            case Committed(position, token_id, origin):
                return self._settle(position, token_id, origin)
            case Audited(start, end, deviations):
                read = [self.unread.pop(position) for position in range(start, end) if position in self.unread]
                self.audited += len(read)
                self.foretold += math.fsum(read)
                self.deviations += len(deviations)
        return None

    def _settle(self, position: int, token_id: int, origin: Origin) -> float | None:
        gone, self._gone = self._gone, None
        drafted = self._drafted.pop(position, None)
        if drafted is None and gone is not None and gone[0] == position:
            drafted = gone[1]
        if drafted is None:  # the cloud wrote it before the device did
            return None
        if origin not in _JUDGED:
            self.unread[position] = drafted.risk
        elif self._stay_provisional and not drafted.fired:
            self.foretold += drafted.risk
            self.deviations += drafted.token_id != token_id
        elif drafted.token_id != token_id:
            self.caught += 1
        return drafted.risk


class Budgeted(Gate):
    """Asks about every token whose risk is at or above the threshold of its workload."""

    def __init__(self, control: Control, *, stay_provisional: bool = False) -> None:
        """Skipped tokens may `stay_provisional` until they are read; see `Ledger`."""
        self.ledger = Ledger(stay_provisional=stay_provisional)
        self._control = control
        self._unread = control.opened()
        self._fired = False  # on the token that is drafted next

    def fires(self, signal: Signal) -> bool:
        self._fired = signal.risk >= self._control.threshold
        return self._fired

    def follow(self, event: SessionEvent) -> None:
        ledger, control = self.ledger, self._control
        caught, waiting, read = ledger.caught, len(ledger.unread), ledger.read
        risk = ledger.follow(event, fired=self._fired)
        self._unread.tokens, self._unread.risk = len(ledger.unread), math.fsum(ledger.unread.values())
        if risk is not None:
            control.saw(risk, skipped=len(ledger.unread) > waiting)
        if ledger.caught > caught:
            control.caught()
        if ledger.read != read:
            control.audited(
                ledger.audited - read.tokens,
                ledger.deviations - read.deviations,
                foretold=ledger.foretold - read.foretold,
                weight=event.weight if isinstance(event, Audited) else 1.0,
            )
