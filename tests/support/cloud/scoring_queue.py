"""A queue in front of a fake large model in virtual time, for texts with beams."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from chaperone_common.beams.scoring import Scoring
from chaperone_common.frames import API_VERSION, Capabilities
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import ForwardRequest, ForwardResult, Urgency
from tests.support.fakes.target import FakeTarget


class ScoringQueue:
    """A `ForwardQueue` that reads all texts of a round in one forward, which takes time of the event loop."""

    def __init__(self, model: FakeTarget, *, forward_ms: float, text_ms: float) -> None:
        """Take `forward_ms` + n * `text_ms` for a forward of n texts."""
        self._model = model
        self._forward_ms, self._text_ms = forward_ms, text_ms
        self._texts = 0  # of the next forward
        self._done: asyncio.Future[float] | None = None

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
        if scoring is None:
            return ForwardResult([], 0, 0)
        self._texts += len(scoring.nodes)
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(self._begin)  # the other texts of the round come before
        compute_ms = await asyncio.shield(self._done)
        cache = self._model.kv_pool.new_cache()
        request = ForwardRequest(cache, tree, 1, sampling, scoring=scoring)
        [scores] = self._model.step([request])
        cache.crop(0)
        return ForwardResult([], 0, round(compute_ms * 1e3), scores=scores)  # type: ignore[arg-type]

    def _begin(self) -> None:
        texts, done, self._texts, self._done = self._texts, self._done, 0, None
        assert done is not None
        compute_ms = self._forward_ms + self._text_ms * texts
        asyncio.get_running_loop().call_later(compute_ms / 1e3, done.set_result, compute_ms)

    def free(self, key: Hashable) -> None:
        """Change nothing: no text is cached."""

    def spare(self, key: Hashable) -> None:
        """Change nothing: there is no budget."""


def beam_capabilities(model: FakeTarget, max_span_tokens: int = 256) -> Capabilities:
    """Return those of a cloud that serves eight beams."""
    return Capabilities(
        API_VERSION, "fake", "", model.vocabulary_size, model.context_tokens, max_span_tokens, max_beams=8
    )
