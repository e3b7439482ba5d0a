"""Texts that begin alike on the device's small model, each in a row of one batch.

A caller names whole texts. Rows hold the tokens of the call before, and a text takes the row that shares most with it.
What another row holds of it is copied, and the rest is read. So beams may live, die and multiply in any way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chaperone_common.errors import InvalidRequest, PromptTooLong
from chaperone_common.token_tree import common_prefix
from edge_client.model.onnx_cache import Copy, Feed, RowCache
from edge_client.model.portable_cache import PortableCache

if TYPE_CHECKING:
    from edge_client.model.onnx_model import OnnxModel

_CHUNK_FROM = 4  # tokens of one text that are read together; fewer are read in step with the other rows


@dataclass(frozen=True, slots=True)
class Plan:
    """The reading of some texts: rows, copies between rows, and the tokens to feed."""

    rows: tuple[int, ...]  # of each text
    kept: tuple[int, ...]  # leading tokens that each row keeps of its own, before the copies
    held: tuple[int, ...]  # leading tokens of each text in its row, after the copies
    copies: tuple[Copy, ...]


def plan(held: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> Plan:
    """Give each text a row, by the tokens that the rows hold. At least the last token of each text is read again.

    A text and a row that share most are joined first. So a row that another text is copied from keeps all that is
    copied, and the copies may be made in any order.
    """
    shared = [[common_prefix(list(row), list(text[:-1])) for row in held] for text in texts]
    pairs = sorted(
        ((text, row) for text in range(len(texts)) for row in range(len(held))),
        key=lambda pair: (-shared[pair[0]][pair[1]], pair[1]),
    )
    rows: dict[int, int] = {}
    for text, row in pairs:
        if text not in rows and row not in rows.values():
            rows[text] = row
    kept, full, copies = [], [], []
    for text in range(len(texts)):
        own = shared[text][rows[text]]
        source = max(range(len(held)), key=lambda row: shared[text][row])
        most = shared[text][source]
        if most > own:
            copies.append(Copy(source, rows[text], own, most))
        kept.append(own)
        full.append(most)
    return Plan(tuple(rows[text] for text in range(len(texts))), tuple(kept), tuple(full), tuple(copies))


class OnnxBeams:
    """The rows of one generation with beams: implements `BeamModel`.

    A call that is cancelled, or fails, costs what it has read, and nothing else.
    """

    def __init__(self, model: OnnxModel, *, rows: int) -> None:
        """Hold up to `rows` texts at once; raises ValueError for none."""
        if rows < 1:
            raise ValueError(f"rows: {rows}; at least one text must fit")
        self._model = model
        self._cache: RowCache | PortableCache = model.new_cache(rows - 1)
        self._held: list[tuple[int, ...]] = [()] * rows
        self._reading = False
        self._closed = False

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    async def logits(self, texts: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        self._check(texts)
        planned = plan(self._held, texts)
        held = self._held
        # Until the worker is done, only these tokens are known to be there.
        self._held = [()] * len(held)
        for row, kept in zip(planned.rows, planned.kept, strict=True):
            self._held[row] = held[row][:kept]
        feeds = _Feeds(planned, texts, [len(tokens) for tokens in held])
        self._reading = True
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._model.worker, feeds.run, self._cache)
        except asyncio.CancelledError:
            feeds.abandon()
            raise
        finally:
            self._reading = False
        self._held = [*held]
        for row, text in zip(planned.rows, texts, strict=True):
            self._held[row] = text
        return [found[row][: self._model.vocabulary_size] for row in planned.rows]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            del self._cache  # a step in the worker keeps it alive until it ends

    def _check(self, texts: Sequence[tuple[int, ...]]) -> None:
        if self._closed or self._reading:
            raise RuntimeError(f"logits: the beams are {'closed' if self._closed else 'being read'}")
        if not 1 <= len(texts) <= len(self._held) or len(set(texts)) < len(texts) or not all(texts):
            raise ValueError(f"logits: {len(texts)} texts; give 1 to {len(self._held)} different ones, none empty")
        longest = max(map(len, texts))
        if longest > self.context_tokens:
            raise PromptTooLong(f"prompt: {longest} tokens, but the device's model holds {self.context_tokens}")
        # The graph would read a negative id from the end of the embedding without complaint.
        if min(map(min, texts)) < 0 or max(map(max, texts)) >= self._model.vocabulary_size:
            raise InvalidRequest(f"prompt: a token id is outside [0, {self._model.vocabulary_size})")


class _Feeds:
    """The forwards of one call, which the model's worker runs."""

    def __init__(self, planned: Plan, texts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> None:
        self._copies = planned.copies
        self._lengths = [*lengths]
        for row, held in zip(planned.rows, planned.held, strict=True):
            self._lengths[row] = held
        self._left = {row: text[held:] for row, held, text in zip(planned.rows, planned.held, texts, strict=True)}
        self._abandoned = False
        self._running: Feed | None = None

    def abandon(self) -> None:
        """Stop before the next forward."""
        self._abandoned = True
        if self._running is not None:
            self._running.abandoned = True

    def run(self, cache: RowCache | PortableCache) -> dict[int, NDArray[np.float32]]:
        """Read the texts, and return the logits [logits_width] after each, by row."""
        for row, tokens in self._left.items():
            if len(tokens) >= _CHUNK_FROM:
                self._feed(cache, {row: tokens[:-1]})
        found: dict[int, NDArray[np.float32]] = {}
        while any(self._left.values()) and not self._abandoned:
            most = max(map(len, self._left.values()))
            found = self._feed(cache, {row: left[:1] for row, left in self._left.items() if len(left) == most})
        return {row: logits[-1].copy() for row, logits in found.items()}

    def _feed(
        self, cache: RowCache | PortableCache, token_ids: dict[int, tuple[int, ...]]
    ) -> dict[int, NDArray[np.float32]]:
        self._running = Feed(token_ids, tuple(self._lengths), self._copies, abandoned=self._abandoned)
        found = cache.feed(self._running)
        for row, tokens in token_ids.items():
            self._lengths[row] += len(tokens)
            self._left[row] = self._left[row][len(tokens) :]
        return found
