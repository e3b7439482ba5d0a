"""The ceiling on the cloud's share, by example; the session is driven by hand."""

from __future__ import annotations

import pytest

from chaperone_common.errors import CloudShareExceeded
from chaperone_common.frames import Verdict
from chaperone_common.session import CloudShareReached, DeviceSession
from chaperone_common.token_tree import BranchToken
from edge_client.gate import CloudShareGuard, CloudShareLimit
from edge_client.gate.cloud_share import LEAST_TOKENS, RESUME_TOKENS
from tests.support.session.device import START, fire, session, skip

BRANCHES = (BranchToken(START - 1, 9),)
OTHER = 40  # the cloud's token wherever it overrides


def guard(device: DeviceSession, tokens: int, *, fails: bool = False, resumed: int = 0) -> CloudShareGuard:
    """Return a guard that allows this number of cloud tokens in a short text."""
    return CloudShareGuard(device, CloudShareLimit(tokens / LEAST_TOKENS, fails, resumed))


def override(device: DeviceSession) -> None:
    fire(device, 1)
    position = device.send().start
    device.apply(Verdict(device.revision + 1, position, OTHER))


def test_the_first_tokens_are_measured_as_if_they_were_more() -> None:
    device = session(limit=200)
    held = guard(device, 8)
    assert (held.tokens_left, held.share) == (8, 0.0)
    skip(device, *range(1, LEAST_TOKENS + 1))
    assert held.tokens_left == 8
    skip(device, 1, 2, 3, 4)
    assert held.tokens_left == 9


def test_only_tokens_that_the_cloud_chose_count() -> None:
    device = session()
    held = guard(device, 8)
    fire(device, 1, 2)
    device.send()
    device.apply(Verdict(0, START + 2, OTHER))
    assert (held.tokens_left, held.share) == (7, 1 / 3), "the bonus"
    override(device)
    assert (held.tokens_left, held.share) == (6, 2 / 4)


def test_the_cloud_writes_nothing_by_itself() -> None:
    device = session()
    assert guard(device, 8).fit(12, ()) == (0, ())


def test_a_branch_needs_room_for_the_token_after_it() -> None:
    device = session()
    assert guard(device, 2).fit(0, BRANCHES) == (0, BRANCHES)
    assert guard(device, 1).fit(0, BRANCHES) == (0, ())


def test_questions_in_flight_share_their_room() -> None:
    """An override in the first one voids the others."""
    device = session()
    held = guard(device, 1)
    for _ in range(3):
        assert held.check() == []
        fire(device, 1)
        device.send()
    assert held.tokens_left == 1


def test_the_ceiling_is_reported_once_until_it_leaves_room() -> None:
    device = session(limit=200)
    held = guard(device, 2)
    for _ in range(2):
        assert held.check() == []
        assert not held.held
        override(device)
    assert held.check() == [CloudShareReached(START + 2, 2, LEAST_TOKENS, 2 / LEAST_TOKENS)]
    assert (held.held, held.reached, held.tokens_left) == (True, True, 0)
    assert held.check() == []
    skip(device, *[1] * (16 * (2 + RESUME_TOKENS) - 3))
    assert held.tokens_left == 0, f"fewer than {RESUME_TOKENS}"
    skip(device, 1)
    assert held.tokens_left == RESUME_TOKENS
    assert held.check() == []
    assert not held.held


def test_a_ceiling_may_end_the_text() -> None:
    device = session()
    held = guard(device, 1, fails=True)
    override(device)
    assert held.check() == []
    assert held.reached
    assert isinstance(held.error, CloudShareExceeded)


def test_tokens_of_a_resumed_text_count() -> None:
    device = session(committed=(1, 2, 3, 4))
    held = guard(device, 8, resumed=3)
    assert (held.tokens_left, held.share) == (5, 0.75)


@pytest.mark.parametrize("share", [None, 1.0])
def test_without_a_ceiling_the_share_is_measured(share: float | None) -> None:
    device = session()
    free = CloudShareGuard(device, CloudShareLimit(share))
    override(device)
    assert (free.limit, free.tokens_left, free.share, free.check()) == (None, None, 1.0, [])
    assert free.fit(100, BRANCHES) == (100, BRANCHES)
    assert not free.held
