"""One text on the device's small model, with its branches.

Forwards run in the model's worker thread, so that the event loop never waits for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chaperone_common.conditioning import Encoding
from chaperone_common.errors import InvalidRequest, PromptTooLong
from chaperone_common.ranges import MAX_COUNT
from edge_client.model.onnx_cache import CHUNK_TOKENS, Copy, Feed, RowCache
from edge_client.model.portable_cache import PortableCache
from edge_client.model.prompt_cache import KeptText, PromptCache
from edge_client.ports import TEXT_ROW, DraftStep

if TYPE_CHECKING:
    from edge_client.model.onnx_model import OnnxModel


@dataclass(slots=True)
class _Row:
    """The tokens of a row, and the length of the prefix that it shares with the text's row."""

    token_ids: list[int] = field(default_factory=list)
    shared: int = 0  # at most the text's length, and the row's own
    forked: bool = False

    @property
    def length(self) -> int:
        return len(self.token_ids)


class OnnxSequence:
    """One sequence of an `OnnxModel`: implements `DraftModel`.

    A step counts when it returns. One that is cancelled, or fails, leaves all lengths as they were: the worker may
    still finish it, but writes only after these lengths, and before any later step. Forking and adopting only note
    copies between rows, which the worker makes at the start of the next step.
    """

    def __init__(self, model: OnnxModel, *, branches: int = 0, prompt_cache: PromptCache | None = None) -> None:
        if branches < 0:
            raise ValueError(f"branches: {branches} is negative; 0 means the text alone")
        self._model = model
        self._prompt_cache = prompt_cache
        self._text = _Row(forked=True)
        self._encoding: Encoding | None = None
        self._cache: RowCache | PortableCache
        if prompt_cache is not None and (kept := prompt_cache.take(model)) is not None:
            self._cache = kept.cache
            model.worker.submit(kept.cache.set_branches, branches)
            self._text.token_ids = [*kept.token_ids]
            self._encoding = kept.encoding
        else:
            self._cache = model.new_cache(branches)
        self._rows = [self._text, *(_Row() for _ in range(branches))]
        self._copies: list[Copy] = []  # not known to be made
        self._stepping = False
        self._closed = False

    @property
    def length(self) -> int:
        return self._text.length

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._text.token_ids)

    @property
    def branches(self) -> int:
        return len(self._rows) - 1

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    def condition(self, encoding: Encoding | None) -> None:
        """Read the text's first tokens with this encoding from now on; None: without one.

        Forgets all tokens that were read in another way, and all branches. Raises ValueError if the model takes no such
        rows.
        """
        self._check_idle("condition")
        width = self._model.graph.encoding_width
        if encoding is not None and (encoding.start or encoding.width != width):
            raise ValueError(
                f"condition: rows of width {encoding.width} from position {encoding.start} on; this model takes "
                f"rows of width {width} from position 0 on"
            )
        kept = min(self.length, _same_rows(self._encoding, encoding))
        for row in self._rows[1:]:
            row.forked = False
        self.rewind(kept)
        self._encoding = encoding

    def rewind(self, length: int) -> None:
        if self._stepping:
            raise RuntimeError("rewind: a step is under way; await or cancel it first")
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind: {length} is outside [0, {self.length}], the tokens fed")
        del self._text.token_ids[length:]
        if self._encoding is not None and length < self._encoding.end:
            self._encoding = self._encoding.between(0, length)
        self._share_at_most(length)

    def fork(self, branch: int, length: int) -> None:
        self._check_idle("fork")
        if not 1 <= branch <= self.branches:
            raise ValueError(f"fork: there is no branch {branch}; the sequence has {self.branches}, numbered from 1")
        if not 0 <= length <= self.length:
            raise ValueError(f"fork: {length} is outside [0, {self.length}], the text's tokens")
        row = self._rows[branch]
        self._copy(TEXT_ROW, branch, row.shared, length)
        self._rows[branch] = _Row(self._text.token_ids[:length], length, forked=True)

    def adopt(self, branch: int) -> None:
        self._check_idle("adopt")
        if branch == TEXT_ROW:
            raise ValueError(f"adopt: row {TEXT_ROW} is the text itself; branches are numbered from 1")
        self._check_forked("adopt", branch)
        row = self._rows[branch]
        self._copy(branch, TEXT_ROW, row.shared, row.length)
        self._share_at_most(row.shared)
        self._text.token_ids = [*row.token_ids]
        row.shared = row.length
        row.forked = False

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        return (await self._feed_each("step", {TEXT_ROW: tuple(token_ids)}))[TEXT_ROW]

    async def read(self, token_ids: Sequence[int]) -> AsyncIterator[DraftStep]:
        for first in range(0, len(token_ids), CHUNK_TOKENS):
            chunk, start = tuple(token_ids[first : first + CHUNK_TOKENS]), self.length
            scores = (await self._feed("read", {TEXT_ROW: chunk}, every=True))[TEXT_ROW]
            for position, row in enumerate(scores, start=start + 1):
                yield self._draft_step(row, position)

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, DraftStep]:
        return await self._feed_each("step_rows", {row: (token_id,) for row, token_id in token_ids.items()})

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._prompt_cache is not None and self.length:
            with suppress(RuntimeError):  # the model was closed
                # After all steps: one that was cancelled may still write after the text.
                self._model.worker.submit(self._cache.drop_branches, tuple(self._copies))
                self._prompt_cache.keep(KeptText(self._model, self._cache, self.token_ids, self._encoding))
        self._text.token_ids = []
        del self._cache  # a step in the worker keeps it alive until it ends

    async def _feed_each(self, action: str, token_ids: dict[int, tuple[int, ...]]) -> dict[int, DraftStep]:
        scores = await self._feed(action, token_ids)
        return {row: self._draft_step(of_row[-1], self._rows[row].length) for row, of_row in scores.items()}

    async def _feed(
        self, action: str, token_ids: dict[int, tuple[int, ...]], *, every: bool = False
    ) -> dict[int, NDArray[np.float32]]:
        self._check_idle(action)
        if not token_ids or not all(token_ids.values()):
            raise ValueError(f"{action}: no tokens; feed at least one")
        for row, fed in token_ids.items():
            self._check_forked(action, row)
            self._check_tokens(self._rows[row].length, fed)
        self._copies = [copy for copy in self._copies if not copy.made]
        feed = Feed(token_ids, tuple(row.length for row in self._rows), tuple(self._copies), every, self._encoding)
        self._stepping = True
        try:
            loop = asyncio.get_running_loop()
            scores = await loop.run_in_executor(self._model.worker, self._cache.feed, feed)
        except asyncio.CancelledError:
            feed.abandoned = True
            raise
        finally:
            self._stepping = False
        for row, fed in token_ids.items():
            self._rows[row].token_ids[feed.lengths[row] :] = fed
        return scores

    def _draft_step(self, scores: NDArray[np.float32], position: int) -> DraftStep:
        return DraftStep(scores[: self._model.vocabulary_size], position)

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        if start < end:
            self._copies.append(Copy(source, target, start, end))

    def _share_at_most(self, length: int) -> None:
        """Note that the text will differ from position `length` on."""
        for row in self._rows:
            row.shared = min(row.shared, length)

    def _check_idle(self, action: str) -> None:
        if self._closed or self._stepping:
            raise RuntimeError(f"{action}: the sequence is {'closed' if self._closed else 'in another step'}")

    def _check_forked(self, action: str, row: int) -> None:
        if not 0 <= row < len(self._rows) or not self._rows[row].forked:
            raise ValueError(f"{action}: branch {row} is not forked, or was adopted; fork it first")

    def _check_tokens(self, start: int, token_ids: tuple[int, ...]) -> None:
        needed = start + len(token_ids)
        if needed > self.context_tokens:
            raise PromptTooLong(f"prompt: {needed} tokens, but the device's model holds {self.context_tokens}")
        # The graph would read a negative id from the end of the embedding without complaint.
        if min(token_ids) < 0 or max(token_ids) >= self._model.vocabulary_size:
            raise InvalidRequest(f"prompt: a token id is outside [0, {self._model.vocabulary_size})")


def _same_rows(before: Encoding | None, after: Encoding | None) -> int:
    """Return for how many leading tokens two encodings add the same to the embeddings."""
    if before is None or after is None:
        return 0 if before or after else MAX_COUNT
    both = min(len(before), len(after))
    same = (before.scales[:both] == after.scales[:both]) & (before.values[:both] == after.values[:both]).all(axis=1)
    if not same.all():
        return int(np.argmin(same))
    return both if len(before) != len(after) else MAX_COUNT
