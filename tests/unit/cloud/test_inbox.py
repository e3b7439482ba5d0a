"""Frames are read ahead of the model, up to a limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import ClientFrame, Draft, Open
from chaperone_common.types import SamplingParams, SessionId
from cloud_supervisor.inbox import Inbox
from tests.support.fakes.clock import ManualClock


def test_frames_are_read_ahead_up_to_a_limit() -> None:
    read = 0

    async def flood() -> AsyncIterator[ClientFrame]:
        nonlocal read
        while True:
            read += 1
            yield Draft(0, read, (1,), (), read)

    async def scenario() -> None:
        inbox = Inbox(flood(), 4, ManualClock())
        for _ in range(20):
            await asyncio.sleep(0)
        assert read == 5, "four wait, and one is held back"
        assert [(await inbox.get()).frame for _ in range(2)] == [Draft(0, n, (1,), (), n) for n in (1, 2)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert read == 7
        await inbox.close()

    asyncio.run(scenario())


def test_a_second_open_is_not_read_ahead() -> None:
    opening = Open(SessionId("s"), "", SamplingParams(), 1, (), (1,))

    async def frames() -> AsyncIterator[ClientFrame]:
        while True:
            yield opening

    async def scenario() -> None:
        inbox = Inbox(frames(), 64, ManualClock())
        assert (await inbox.get()).frame is opening
        with pytest.raises(ProtocolViolation, match="a second Open in one stream"):
            await inbox.get()
        await inbox.close()

    asyncio.run(scenario())
