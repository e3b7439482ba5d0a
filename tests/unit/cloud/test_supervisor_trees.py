"""The supervisor with branches in Drafts: they reach the model, and count against the limit of a span."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from chaperone_common.frames import (
    API_VERSION,
    Capabilities,
    ClientFrame,
    Close,
    Draft,
    Failure,
    Open,
    ServerFrame,
    Verdict,
)
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SessionId
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.supervisor import Supervisor
from tests.support.cloud.runner import SAMPLED, oracle, runner_of
from tests.support.fakes.target import FakeTarget

PROMPT = (5, 6, 7)
START = len(PROMPT)
OPEN = Open(SessionId("s"), "digest", SAMPLED, 40, (), PROMPT)


def converse(model: FakeTarget, frames: Sequence[Draft]) -> list[ServerFrame]:
    """Send each Draft after the previous answer, then a Close; return the frames after the opening."""

    async def scenario() -> list[ServerFrame]:
        runner = runner_of(model)
        capabilities = Capabilities(API_VERSION, "fake", "digest", model.vocabulary_size, model.context_tokens, 6)
        supervisor = Supervisor(runner, capabilities, LimitsConfig(max_span_tokens=6))
        answered = asyncio.Semaphore(0)

        async def stream() -> AsyncIterator[ClientFrame]:
            yield OPEN
            for frame in frames:
                yield frame
                await answered.acquire()
            yield Close(START, ())

        replies: list[ServerFrame] = []
        async for reply in supervisor.supervise(stream()):
            replies.append(reply)
            if isinstance(reply, Verdict):
                answered.release()
        await runner.close()
        return replies[2:]

    return asyncio.run(asyncio.wait_for(scenario(), 60))


def written(model: FakeTarget, count: int) -> tuple[int, ...]:
    """Return the model's own text."""
    text: tuple[int, ...] = PROMPT
    for _ in range(count):
        text += (oracle(model, text, 1)[0].token_id,)
    return text[START:]


def test_a_branch_of_the_clouds_own_text_saves_a_round() -> None:
    model = FakeTarget()
    own = written(model, 7)
    wrong, other = ((own[1] + more) % model.vocabulary_size for more in (1, 2))
    branches = (BranchToken(START, other), BranchToken(START, own[1]), BranchToken(START + 3, own[2]))
    drafts = [
        Draft(0, START, (own[0], wrong), (0, 0), START, branches=branches),
        Draft(1, START + 4, (own[4],), (0,), START + 4),
    ]
    first, second = converse(model, drafts)[:2]
    assert isinstance(first, Verdict)
    assert isinstance(second, Verdict)
    assert (first.revision, first.position, first.token_id) == (1, START + 1, own[1])
    assert first.further_token_ids == own[2:4]
    assert (second.position, second.token_id) == (START + 5, own[5])
    # The forwards read: the prompt without its last token; that token, the chain and the branches; the cloud's last
    # choice and the token after it. The accepted branch is not read again.
    assert model.tokens_read == 2 + (1 + 2 + 3) + 2


def test_branch_tokens_count_against_the_limit_of_a_span() -> None:
    branches = tuple(BranchToken(START - 1, token_id) for token_id in range(5))
    [reply] = converse(FakeTarget(), [Draft(0, START, (1, 2), (0, 0), START, branches=branches)])
    assert isinstance(reply, Failure)
    assert reply.status == "INVALID_ARGUMENT"
    assert reply.message == "token_ids: 7 in one Draft, at most 6 are allowed, branches included"
    answer = converse(FakeTarget(), [Draft(0, START, (1,), (0,), START, branches=branches)])[0]
    assert isinstance(answer, Verdict)
