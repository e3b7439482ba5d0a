"""Fields that a Draft leaves out: risks without a gate, and an unchanged deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence

import pytest

from chaperone_common.beams.scoring import Scoring
from chaperone_common.errors import CloudUnavailable
from chaperone_common.frames import (
    API_VERSION,
    Capabilities,
    ClientFrame,
    Close,
    Closed,
    Draft,
    Failure,
    Open,
    Opened,
    ServerFrame,
    Verdict,
)
from chaperone_common.session import CloudSession, DeviceSession
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Choice, Proposal, SamplingParams, SessionId, Signal
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.model.ports import ForwardResult, Urgency
from cloud_supervisor.supervisor import Supervisor
from tests.support.fakes.clock import ManualClock

PROMPT = (7, 8, 9)
START = len(PROMPT)
OPEN = Open(SessionId("s"), "digest", SamplingParams(), 20, (0,), PROMPT)
SURE, UNSURE = Signal(0.0, 1.0, 1.0, 9.0, 0.0), Signal(1.0, 0.5, 0.1, 1.0, 0.5)


def device_session() -> DeviceSession:
    device = DeviceSession(OPEN, limit=23)
    device.apply(Opened(prefilled=True, context_tokens=100))
    return device


def fire(device: DeviceSession, token_id: int) -> None:
    device.draft(Proposal(token_id, UNSURE, 99), fires=True)


def skip(device: DeviceSession, token_id: int) -> None:
    device.draft(Proposal(token_id, SURE, 99), fires=False)


def reopen(device: DeviceSession) -> None:
    with pytest.raises(CloudUnavailable):
        device.apply(Failure("UNAVAILABLE", "gone"))
    device.reopen()


# Risks


def test_no_risks_are_sent_while_every_token_is_judged() -> None:
    device = device_session()
    for token_id in (1, 2, 3):
        fire(device, token_id)
        assert device.send().risks == ()
    reopen(device)
    assert device.send() == Draft(0, START, (1, 2, 3), (), START)


def test_risks_are_sent_from_the_first_skipped_token_on() -> None:
    device = device_session()
    fire(device, 1)
    assert device.send().risks == ()
    skip(device, 2)  # after the fire, so it is judged as well; after the verdict it would have been skipped
    fire(device, 3)
    assert device.send().risks == (0.0, 0.5)
    fire(device, 4)
    assert device.send().risks == (0.5,)
    reopen(device)
    assert device.send().risks == (0.5, 0.0, 0.5, 0.5)


# The deadline, on the device


def sent_deadline(device: DeviceSession, token_id: int, deadline_ms: int) -> int:
    fire(device, token_id)
    return device.send(deadline_ms=deadline_ms).deadline_ms


def test_a_deadline_is_sent_when_it_changes() -> None:
    device = device_session()
    wanted = (900, 900, 500, 500, 900)
    assert [sent_deadline(device, 1 + index, each) for index, each in enumerate(wanted)] == [900, 0, 500, 0, 900]


def test_zero_keeps_the_deadline() -> None:
    device = device_session()
    assert [sent_deadline(device, 1, each) for each in (0, 900, 0, 900)] == [0, 900, 0, 0]


def test_a_new_stream_sends_the_deadline_again() -> None:
    device = device_session()
    assert sent_deadline(device, 1, 900) == 900
    reopen(device)
    assert sent_deadline(device, 2, 900) == 900
    assert sent_deadline(device, 3, 900) == 0


# The deadline, in the cloud


def draft(start: int, *token_ids: int, deadline_ms: int = 0) -> Draft:
    return Draft(0, start, token_ids, (), start, deadline_ms=deadline_ms)


def test_a_deadline_holds_until_the_next_one() -> None:
    cloud = CloudSession(OPEN, context_tokens=100, vocabulary_size=50)
    seen = []
    for start, deadline_ms in ((3, 0), (4, 900), (5, 0), (6, 500), (7, 0)):
        judging = cloud.receive(draft(start, deadline_ms=deadline_ms))
        assert judging is not None
        cloud.answer(judging, [1])
        seen.append(cloud.deadline_ms)
    assert seen == [0, 900, 900, 500, 500]


def test_even_an_ignored_draft_sets_its_deadline() -> None:
    cloud = CloudSession(OPEN, context_tokens=100, vocabulary_size=50)
    judging = cloud.receive(draft(START, 1))
    assert judging is not None
    assert cloud.answer(judging, [2, 3]) == Verdict(1, START, 2)
    assert cloud.receive(draft(START + 1, 4, deadline_ms=900)) is None
    assert cloud.stale_frames == 1
    assert cloud.deadline_ms == 900


# The deadline, in the supervisor


class NotingReader:
    """A `Reader` that chooses 1 everywhere, and records the deadlines of its requests."""

    def __init__(self) -> None:
        self.deadlines_ms: list[float | None] = []

    async def forward(
        self,
        key: Hashable,
        tree: TokenTree,
        num_choices: int,
        sampling: SamplingParams,
        *,
        top_logprobs: int | None = None,
        first_reported: int = 0,
        deadline_ms: float | None = None,
        tenant: str = "",
        urgency: Urgency = Urgency.VERIFY,
        encoded: bool = False,
        scoring: Scoring | None = None,
    ) -> ForwardResult:
        if num_choices:
            self.deadlines_ms.append(deadline_ms)
        return ForwardResult([Choice(1, 1.0, 2)] * (num_choices + len(tree.branches)), 0, 0)

    def free(self, key: Hashable) -> None:
        """Do nothing, since nothing is cached."""

    def spare(self, key: Hashable) -> None:
        """Do nothing, since nothing is cached."""


async def _converse(reader: NotingReader, drafts: Sequence[Draft], tail: Close) -> list[ServerFrame]:
    """Send each Draft after the previous answer, then the Close."""
    supervisor = Supervisor(
        reader, Capabilities(API_VERSION, "fake", "digest", 50, 100, 16), LimitsConfig(), ManualClock()
    )
    answered = asyncio.Semaphore(0)

    async def frames() -> AsyncIterator[ClientFrame]:
        yield OPEN
        for frame in drafts:
            yield frame
            await answered.acquire()
        yield tail

    replies = []
    async for reply in supervisor.supervise(frames()):
        replies.append(reply)
        if isinstance(reply, Verdict):
            answered.release()
    return replies


def test_the_supervisor_uses_the_last_deadline_sent() -> None:
    reader = NotingReader()
    drafts = [draft(3), draft(4, 1, deadline_ms=900), draft(6), draft(7, deadline_ms=500), draft(8)]
    replies = asyncio.run(_converse(reader, drafts, Close(9, (1,))))
    assert isinstance(replies[-1], Closed)
    assert reader.deadlines_ms == [None, 900, 900, 500, 500, None], "the closing audit has no deadline"


def test_deadlines_of_one_stream_do_not_affect_another() -> None:
    reader = NotingReader()

    async def twice() -> None:
        for deadline_ms in (900, 0):
            await _converse(reader, [draft(3, deadline_ms=deadline_ms)], Close(4, ()))

    asyncio.run(twice())
    assert reader.deadlines_ms == [900, None]
