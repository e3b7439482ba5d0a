"""The patience of a pull with its source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

from chaperone_common.errors import ChaperoneError, CloudLost, Overloaded
from edge_client.artefacts.source import SourceLost

PATIENCE_S = 120.0  # without new bytes

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_LEAST_SHARE = 0.5  # of a pause; the rest is drawn
_BUSY_TURNS = 10  # other devices get their model while a source is busy, so that may take long
_LOSSES = (CloudLost, Overloaded, SourceLost)
_KEPT = "what has arrived is kept, run the same command again to go on"


class Patience:
    """Asks a source again after a loss, until it has sent nothing for a time.

    The time in which it was lost and the time in which it was busy are counted apart. Pauses are drawn from `random`,
    so that devices which lost their source together do not come back together.
    """

    def __init__(self, patience_s: float, say: Callable[[str], None], random: Random) -> None:
        self._patience_s = patience_s
        self._say = say
        self._random = random
        self.renew()

    def renew(self) -> None:
        """Count from now on: bytes have arrived, or the source was not asked for anything until now."""
        self._pause_s = _FIRST_PAUSE_S
        self._lost_s = self._busy_s = 0.0
        self._counted_at_s = asyncio.get_running_loop().time()

    async def kept(self, ask: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the first answer of a source. Wait if it says how long; raise any other error at once."""
        while True:
            try:
                return await ask()
            except _LOSSES as error:
                if error.retry_after_ms is None:
                    raise
                await self._pause(error)

    @asynccontextmanager
    async def losses(self) -> AsyncIterator[None]:
        """Wait after a loss within the block, or raise it when patience ends."""
        try:
            yield
        except _LOSSES as error:
            await self._pause(error)

    async def _pause(self, error: ChaperoneError) -> None:
        drawn_s = self._pause_s * self._random.uniform(_LEAST_SHARE, 1.0)
        pause_s = drawn_s + (error.retry_after_ms or 0) / 1e3
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if self._count(error, pause_s):
            raise type(error)(f"{error.message}; {_KEPT}", retry_after_ms=error.retry_after_ms) from None
        self._say(f"{error.message}; trying again in {pause_s:.1f} s")
        await asyncio.sleep(pause_s)

    def _count(self, error: ChaperoneError, pause_s: float) -> bool:
        """Count the time of a loss, with the pause after it; return whether patience with such losses has ended."""
        ends_at_s = asyncio.get_running_loop().time() + pause_s
        spent_s, self._counted_at_s = ends_at_s - self._counted_at_s, ends_at_s
        if isinstance(error, Overloaded):
            self._busy_s += spent_s
            return self._busy_s > _BUSY_TURNS * self._patience_s
        self._lost_s += spent_s
        return self._lost_s > self._patience_s
