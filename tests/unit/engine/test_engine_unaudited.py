"""The tokens that no audit of a stream has reached, for a later audit."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random
from typing import Any

import pytest

from chaperone_common.frames import Close, Failure
from chaperone_common.session import Committed
from chaperone_common.types import Mode
from edge_client.engine.unaudited import UnauditedText
from edge_client.gate import Never
from tests.support.device.engine import PROMPT, TARGET, EngineHarness
from tests.support.fakes.link import FakeLink, cloud_of

START = len(PROMPT)


def unaudited(link: FakeLink | None, *, leave_after: int | None = None, **settings: Any) -> UnauditedText | None:
    """Write a text of 40 skipped tokens, or leave it early; return what is left to audit."""
    harness = EngineHarness(link, mode=Mode.GATED, gate=Never(), **settings)
    engine = harness.engine

    async def write() -> UnauditedText | None:
        committed = 0
        async with aclosing(engine.stream()) as events:
            async for event in events:
                committed += isinstance(event, Committed)
                if committed == leave_after:
                    break
        if engine.audit_pending:
            await engine.audit()
        return engine.unaudited()

    return asyncio.run(write())


def losing_the_audit() -> FakeLink:
    """Return a link that breaks at the Close."""
    cloud = cloud_of(TARGET)
    return FakeLink(lambda frame: [Failure("UNAVAILABLE", "gone")] if isinstance(frame, Close) else cloud(frame))


def lasting_one_frame() -> FakeLink:
    return FakeLink(cloud_of(TARGET), lasts=1)


@pytest.mark.parametrize("leave_after", [None, 10])
@pytest.mark.parametrize("closing_audit", [False, True])
def test_an_audit_that_arrives_leaves_nothing(leave_after: int | None, closing_audit: bool) -> None:
    assert unaudited(FakeLink(cloud_of(TARGET)), leave_after=leave_after, closing_audit=closing_audit) is None


@pytest.mark.parametrize("closing_audit", [False, True])
def test_an_audit_that_is_lost_leaves_all_tokens_of_the_close(closing_audit: bool) -> None:
    left = unaudited(losing_the_audit(), closing_audit=closing_audit)
    assert left is not None
    assert (left.start, left.end, left.skipped) == (START, START + 40, ((START, START + 40),))
    assert left.prompt_token_ids == PROMPT
    assert left.skipped_tokens == 40
    assert left.risk > 0


def test_tokens_after_the_loss_are_unread_and_not_skipped() -> None:
    left = unaudited(lasting_one_frame(), continue_without_cloud=True)
    assert left is not None
    assert left.end == START + 40
    assert left.skipped_tokens < 40, "the others are unverified"


def test_a_text_without_a_cloud_is_unread_as_a_whole() -> None:
    left = unaudited(None, continue_without_cloud=True)
    assert left is not None
    assert (left.start, left.end, left.skipped, left.risk) == (START, START + 40, (), 0.0)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
def test_a_share_of_the_texts_without_requests_is_kept_and_stands_for_the_others(alone: bool, drawn: bool) -> None:
    number = Random("s").random()  # the one that is drawn for this session
    share = (number + 1) / 2 if drawn else number / 2
    left = unaudited(None if alone else losing_the_audit(), audit_share=share, continue_without_cloud=True)
    assert (left is not None) == drawn
    assert left is None or left.weight == pytest.approx(1 / share)
