"""The pace of refusals: a client that tries again without a pause must cost little."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from chaperone_common.clock import Clock

BURST = 20  # refusals that are sent at once
PER_SECOND = 10.0  # refusals of one client after these
_MAX_CLIENTS = 4096
_MAX_HELD = 1024


class RefusalPace:
    """Holds refusals back, so that one client gets `PER_SECOND` of them after a burst.

    A client is a tenant, or the network address of a stranger. No refusal is held for longer than `max_delay_s`, so a
    client with many streams gets more: each of them one in `max_delay_s`. While very many are held, no other is.
    """

    def __init__(self, max_delay_s: float, clock: Clock) -> None:
        self._max_delay_s = max_delay_s
        self._clock = clock
        # By client: the time at which its refusals so far would have been sent one by one. Oldest change first.
        self._due_s: OrderedDict[str, float] = OrderedDict()
        self._held = 0

    def delay_s(self, client: str) -> float:
        """Count a refusal of a client, and return how long it is to be held back."""
        now = self._clock.now()
        # The excess is forgotten: after `max_delay_s` and the time of a burst without refusals, a client begins again.
        due = min(max(now, self._due_s.pop(client, now)), now + BURST / PER_SECOND + self._max_delay_s)
        self._due_s[client] = due + 1 / PER_SECOND
        if len(self._due_s) > _MAX_CLIENTS:
            self._due_s.popitem(last=False)
        delay_s = round(due - now - (BURST - 1) / PER_SECOND, 6)  # no delays by errors of rounding
        return min(max(0.0, delay_s), self._max_delay_s)

    async def hold(self, client: str) -> None:
        """Wait until a refusal of a client may be sent."""
        delay_s = self.delay_s(client)
        if not delay_s or self._held >= _MAX_HELD:  # the held ones cost memory
            return
        self._held += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._held -= 1
