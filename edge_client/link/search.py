"""The search for the first address that answers, before a generation begins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from chaperone_common.errors import ChaperoneError, CloudLost, CloudUnavailable, Overloaded
from chaperone_common.frames import Capabilities
from edge_client.link.addresses import Outages, Turns
from edge_client.link.diagnosis import MAY_LOAD, START_IT, NeverConnects, without_remedy
from edge_client.ports import Cloud

_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 100.0, 1_000.0  # between two requests to one address

Ask = Callable[[float], Awaitable[Capabilities]]  # within these milliseconds


class Site:
    """One address of the cloud: its channel, made when it is first needed, and its capabilities."""

    def __init__(self, address: str, connect: Callable[[str], tuple[Cloud, Ask]]) -> None:
        """`connect` makes a channel, and what asks it for its capabilities."""
        self.address = address
        self._connect = connect
        self._made: tuple[Cloud, Ask] | None = None
        self._capabilities: Capabilities | None = None

    @property
    def cloud(self) -> Cloud:
        """The channel."""
        return self._channel()[0]

    @property
    def connected(self) -> bool:
        """True if there is a channel, and its connection is up."""
        return self._made is not None and self._made[0].connected

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        """Return the capabilities that `keep` has, as long as the connection lasts, or request them."""
        if self._capabilities is not None and self.connected:
            return self._capabilities
        self._capabilities = None
        return await self._channel()[1](timeout_ms)

    def keep(self, capabilities: Capabilities) -> None:
        """Keep capabilities that fit this device."""
        self._capabilities = capabilities

    def forget(self) -> None:
        """Request the capabilities the next time."""
        self._capabilities = None

    def drop(self) -> Cloud | None:
        """Forget the channel, and return it if there is one."""
        made, self._made, self._capabilities = self._made, None, None
        return made[0] if made is not None else None

    def _channel(self) -> tuple[Cloud, Ask]:
        if self._made is None:
            self._made = self._connect(self.address)
        return self._made


async def first_answer(sites: Sequence[Site], timeout_ms: float, outages: Outages) -> tuple[int, Capabilities]:
    """Return the index of the first address that answers, and its capabilities.

    Several addresses are asked in turn, first without a pause. Each has its share of the time. Raises CloudLost or
    Overloaded if none answers in time, or if waiting cannot help; any other error of an address ends the search.
    """
    if len(sites) == 1:
        return 0, await sites[0].capabilities(timeout_ms)
    loop = asyncio.get_running_loop()
    ends_at_ms = loop.time() * 1e3 + timeout_ms
    turns, errors = Turns(len(sites)), dict[int, ChaperoneError]()
    while True:
        now_ms = loop.time() * 1e3
        turn = turns.next(now_ms, ends_at_ms - now_ms)
        if turn is None or now_ms + turn.pause_ms >= ends_at_ms:
            raise _nobody(errors, timeout_ms)
        await asyncio.sleep(turn.pause_ms / 1e3)
        index = turn.address
        try:
            share_ms = turns.share_ms(ends_at_ms - loop.time() * 1e3)
            capabilities = await sites[index].capabilities(share_ms)
        except (CloudLost, Overloaded) as error:
            errors[index] = error
            outages.note(sites[index].address, error.retry_after_ms)
            pause_ms = min(_LONGEST_PAUSE_MS, _FIRST_PAUSE_MS * 2.0 ** turns.failures(index))
            turns.failed(index, loop.time() * 1e3, asked_ms=error.retry_after_ms or 0, pause_ms=pause_ms)
            if len(errors) == len(sites) and all(isinstance(each, NeverConnects) for each in errors.values()):
                raise _nobody(errors, timeout_ms) from None
        else:
            outages.clear(sites[index].address)
            return index, capabilities


def _nobody(errors: Mapping[int, ChaperoneError], timeout_ms: float) -> ChaperoneError:
    """Return the error of a search without an answer, with the last problem of each address."""
    problems = [without_remedy(errors[index].message.removeprefix("cloud: ")) for index in sorted(errors)]
    remedy = START_IT if all(isinstance(error, NeverConnects) for error in errors.values()) else MAY_LOAD
    overloaded = [error for error in errors.values() if isinstance(error, Overloaded)]
    kind: type[ChaperoneError] = Overloaded if overloaded else CloudUnavailable
    asked_ms = [error.retry_after_ms for error in errors.values() if error.retry_after_ms is not None]
    return kind(
        f"cloud: no address answers within {timeout_ms:g} ms (cloud.connect_timeout_ms): "
        f"{'; '.join(problems)}; {remedy}",
        retry_after_ms=min(asked_ms, default=None),
    )
