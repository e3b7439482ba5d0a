"""A cloud's end alone, and the frames that a device sends it."""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.frames import Close, Draft, Open, ServerFrame
from chaperone_common.session import CloudSession
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId
from tests.support.session.device import EOS, PROMPT


def opening(*, max_new_tokens: int = 20, committed: tuple[int, ...] = (), prompt: tuple[int, ...] = PROMPT) -> Open:
    return Open(SessionId("s"), "", SamplingParams(), max_new_tokens, (EOS,), prompt, committed)


def session(*, max_new_tokens: int = 20, committed: tuple[int, ...] = (), context_tokens: int = 100) -> CloudSession:
    frame = opening(max_new_tokens=max_new_tokens, committed=committed)
    return CloudSession(frame, context_tokens=context_tokens, vocabulary_size=50)


def draft(
    start: int,
    *token_ids: int,
    revision: int = 0,
    final_before: int | None = None,
    continuation_tokens: int = 0,
    branches: Sequence[tuple[int, int]] = (),
) -> Draft:
    """Return a Draft with a risk for each token; `branches` are pairs of an absolute parent and an id."""
    final = start if final_before is None else final_before
    tokens = tuple(BranchToken(*branch) for branch in branches)
    return Draft(revision, start, token_ids, (0.5,) * len(token_ids), final, continuation_tokens, branches=tokens)


def answer(cloud: CloudSession, frame: Draft | Close, choices: Sequence[int]) -> ServerFrame:
    """Let the cloud read a frame; `choices` begin at the first new token, followed by one after each branch."""
    request = cloud.receive(frame)
    assert request is not None
    assert request.num_choices + len(request.tree.branches) == len(choices), request
    return cloud.answer(request, choices)
