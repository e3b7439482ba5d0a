"""An engine that sends branches next to its text, against a scripted cloud; no gRPC, no files, no real time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import pytest

from chaperone_common.errors import CloudTimeout
from chaperone_common.frames import ClientFrame, Draft, Open, ServerFrame, Verdict
from chaperone_common.session import Committed, Drafted
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import Mode, Origin
from edge_client.planner import Action, BranchPrefix, Decision, DraftToken, Estimates, Pipeline, Send, Situation, Wait
from tests.support.device.engine import OPENED, PROMPT, EngineHarness, failed, written
from tests.support.fakes.link import FakeLink
from tests.support.fakes.target import FakeTarget

AT = len(PROMPT)
DRAFT = FakeTarget(disturbance=0.5)  # the harness's small model
FOREIGN = 63  # a token that it never writes here


class Scripted:
    """A planner that plays a list of actions, and then waits."""

    mode = Mode.EXACT

    def __init__(self, *actions: Action) -> None:
        self._actions = list(actions)

    def decide(self, situation: Situation) -> Decision:
        return Decision(self._actions.pop(0) if self._actions else Wait(), "as listed")

    def alone(self) -> Self:
        return self


class NotingPipeline(Pipeline):
    """Records the lengths of the sent spans."""

    def __init__(self) -> None:
        super().__init__(Estimates())
        self.lengths: list[int] = []

    def sent(self, tokens: int, now_ms: float) -> None:
        self.lengths.append(tokens)
        super().sent(tokens, now_ms)


def ranked(text: Iterable[int], place: int) -> int:
    """Return the draft's choice after a text, or its second choice at place 1."""
    return int(DRAFT.logits(list(text)).argsort()[-1 - place])


FIRST, OTHER = ranked(PROMPT, 0), ranked(PROMPT, 1)
SECOND = ranked((*PROMPT, FIRST), 0)
NEXT = ranked((*PROMPT, OTHER), 0)
TREE = (BranchToken(AT - 1, OTHER), BranchToken(AT + 2, NEXT), BranchToken(AT, ranked((*PROMPT, FIRST), 1)))
DRAFTING = (DraftToken(), DraftToken(True, (AT,)))  # two tokens of the text, and one after the branch at its first
PREFIXES = (BranchPrefix(AT, 2), BranchPrefix(AT + 1, 1))


def staged(link: FakeLink, *actions: Action, **settings: Any) -> EngineHarness:
    return EngineHarness(link, planner=Scripted(*actions), branches=2, verification_deadline_ms=1.0, **settings)


def drafts(link: FakeLink) -> list[Draft]:
    return [frame for frame in link.sent if isinstance(frame, Draft)]


def silent() -> FakeLink:
    link = FakeLink()
    link.deliver(OPENED)
    return link


def test_text_and_branches_share_one_draft() -> None:
    link = silent()
    harness = staged(link, *DRAFTING, Send(branches=PREFIXES))
    harness.engine.pipeline = pipeline = NotingPipeline()
    assert isinstance(failed(harness.run()).error, CloudTimeout)
    (draft,) = drafts(link)
    assert draft.token_ids == (FIRST, SECOND)
    assert draft.branches == TREE
    assert pipeline.lengths == [5], "the cloud reads the branches too"


@pytest.mark.parametrize(
    ("most", "tokens", "branches"), [(5, 2, TREE), (4, 2, TREE[:2]), (3, 2, TREE[:1]), (2, 2, ()), (1, 1, ())]
)
def test_tokens_beyond_the_clouds_limit_are_left_out_last_branches_first(
    most: int, tokens: int, branches: tuple[BranchToken, ...]
) -> None:
    link = silent()
    staged(link, *DRAFTING, Send(branches=PREFIXES), max_span_tokens=most).run()
    (draft,) = drafts(link)
    assert len(draft.token_ids) == tokens
    assert draft.branches == branches


def test_only_branches_next_to_the_sent_span_are_sent() -> None:
    link = silent()
    staged(link, *DRAFTING, Send(1, branches=PREFIXES), Send(branches=PREFIXES)).run()
    first, second = drafts(link)
    assert (first.token_ids, first.branches) == ((FIRST,), (BranchToken(AT - 1, OTHER), BranchToken(AT + 1, NEXT)))
    assert (second.token_ids, second.branches) == ((SECOND,), (BranchToken(AT, TREE[2].token_id),))


@pytest.mark.parametrize("own", [ranked((*PROMPT, OTHER, NEXT), 0), FOREIGN])
def test_an_accepted_branch_is_committed_at_once_and_continued(own: int) -> None:
    def cloud(frame: ClientFrame) -> Iterable[ServerFrame]:
        match frame:
            case Open():
                yield OPENED
            case Draft():
                yield Verdict(1, AT, OTHER, further_token_ids=(NEXT, own))
            case _:
                pass

    harness = staged(FakeLink(cloud), *DRAFTING, Send(branches=PREFIXES), DraftToken(), DraftToken())
    events = harness.run()
    assert written(events) == [OTHER, NEXT, own]
    assert [event.origin for event in events if isinstance(event, Committed)] == [
        Origin.OVERRIDE,
        Origin.VERIFIED,
        Origin.BONUS,
    ]
    text = [*PROMPT, OTHER, NEXT, own]
    for event in [event for event in events if isinstance(event, Drafted)][2:]:
        assert (event.position, event.token_id) == (len(text), ranked(text, 0))
        text.append(event.token_id)
    assert len(text) == AT + 3 + 2
    assert len(harness.model.fed) == 2 + 2, "neither the branch nor the text before it is read again"
