"""Keys and values of rows in buffers that an exported graph runs on, and the forwards over them.

The exported graph holds GroupQueryAttention nodes, which write new keys and values into the very buffers they read
the old ones from, as long as both are bound to the same memory. The length of a row is
the number of ones in its attention mask, so a rewind only sets a number. The buffer after that length is never read.

All rows (a text and its branches, or several texts) live in one batch. Adjacent rows run in a single forward by
binding a slice of the buffers. The logits of each row are identical to running it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaperone_common.conditioning import Encoding
from chaperone_common.errors import ModelError
from edge_client.ports import TEXT_ROW

# The graph gives logits for each position fed, 0.6 MB each for 152,000 ids. Longer chunks are hardly any faster
# (256 tokens of the default model: 1180 ms by 32, 1160 by 64, 1080 in one), cost memory and are later to cancel.
CHUNK_TOKENS = 32
FIRST_CAPACITY = 256

PAST, PRESENT = "past_key_values.", "present."
CONDITIONING = "conditioning"  # an input that is added to the embeddings

# Up to this many rows between two fed rows run as well: another row costs less than another forward.
_MAX_GAP = 2
_FILLER = (0,)


@dataclass(frozen=True, slots=True)
class Graph:
    """The inputs and outputs of an exported graph."""

    kv_names: tuple[str, ...]  # of the inputs, keys and values of all layers
    kv_heads: int
    kv_width: int
    kv_dtype: type[np.float32 | np.float16]
    logits_width: int  # at least the vocabulary, often padded
    logits_dtype: type[np.float32 | np.float16]
    returns_kv: bool = False  # it returns keys and values, and does not write them into the buffers of its inputs
    takes_positions: bool = False  # it has the input `position_ids`
    encoding_width: int = 0  # of the input `conditioning`; 0: it has none

    def conditioning(self, encoding: Encoding | None, starts: Sequence[int], count: int) -> NDArray[np.float32]:
        """Return what is added to the embeddings of `count` tokens of each row, from its own position on.

        [rows, count, width], zeros where there is no encoding; [1, 1, width] if it has none of these positions.
        """
        if encoding is None or min(starts) >= encoding.end:
            return np.zeros((1, 1, self.encoding_width), np.float32)
        added = np.zeros((len(starts), count, self.encoding_width), np.float32)
        for row, start in enumerate(starts):
            end = min(start + count, encoding.end)
            if start < end:
                added[row, : end - start] = encoding.between(start, end).rows()
        return added


@dataclass(slots=True)
class Copy:
    """A copy of positions `start` to `end` from one row to another; made once, in the order of requests."""

    source: int
    target: int
    start: int
    end: int
    made: bool = False


@dataclass(slots=True)
class Feed:
    """One step on its way through the worker; an abandoned one stops before its next forward."""

    token_ids: dict[int, tuple[int, ...]]  # by row; several rows get one token each
    lengths: tuple[int, ...]  # of all rows, before the step
    copies: tuple[Copy, ...] = ()  # to be made first, unless an earlier step made them
    every: bool = False  # logits after each token are wanted, not after the last alone; of one row, a chunk at most
    encoding: Encoding | None = None  # of the text's first tokens, for a graph that takes one
    abandoned: bool = False


class RowCache:
    """Keys, values and bound buffers of rows that are read together; after construction only the worker touches it."""

    def __init__(
        self, session: Any, graph: Graph, chunk_logits: NDArray[Any], *, branches: int, context_tokens: int
    ) -> None:
        """`chunk_logits` [CHUNK_TOKENS, logits_width] may be shared: what outlives a forward is copied."""
        self._session = session
        self._graph = graph
        self._chunk_logits = chunk_logits
        self._all_rows = _order(branches)
        self._context_tokens = context_tokens
        self._rows = [TEXT_ROW]  # those that the buffers hold, by their place there
        self._capacity = 0
        self._kv: list[NDArray[Any]] = []  # each [rows, heads, capacity, width]
        self._logits = np.empty((1, graph.logits_width), graph.logits_dtype)  # [rows, logits_width]
        self._batches: dict[tuple[int, int], _Batch] = {}

    def feed(self, feed: Feed) -> dict[int, NDArray[np.float32]]:
        """Read the tokens; returns the logits [wanted, logits_width] of each row, until the next feed."""
        forked = bool(feed.copies) or feed.token_ids.keys() != {TEXT_ROW}
        needed = max(feed.lengths[row] + len(token_ids) for row, token_ids in feed.token_ids.items())
        with_fillers = min(max(feed.lengths) + 1, self._context_tokens)
        self._reserve(max(needed, with_fillers), self._all_rows if forked else self._rows)
        for copy in feed.copies:
            self._make(copy)
        for first, last in self._neighbours(feed):
            self._forward(feed, first, last)
        if feed.every:
            [(row, token_ids)] = feed.token_ids.items()
            if len(token_ids) > 1:  # a copy: others read in the same buffer
                return {row: self._chunk_logits[: len(token_ids)].astype(np.float32)}
        places = {row: self._rows.index(row) for row in feed.token_ids}
        return {row: self._logits[place, np.newaxis].astype(np.float32, copy=False) for row, place in places.items()}

    def drop_branches(self, copies: Sequence[Copy]) -> None:
        """Keep the text's row alone, after these copies were made."""
        if copies:
            self._reserve(self._capacity, self._all_rows)
        for copy in copies:
            self._make(copy)
        if self._rows == [TEXT_ROW]:
            return
        place = self._rows.index(TEXT_ROW)
        self._kv = [buffer[place : place + 1].copy() for buffer in self._kv]
        self._rows = [TEXT_ROW]
        self._logits = np.empty((1, self._graph.logits_width), self._graph.logits_dtype)
        self._batches = {}

    def set_branches(self, branches: int) -> None:
        """Hold up to this many branches from now on; `drop_branches` comes before."""
        self._all_rows = _order(branches)

    def _forward(self, feed: Feed, first: int, last: int) -> None:
        """Run the rows at places `first` to `last`; a row in between that is not fed writes after its own tokens."""
        rows = self._rows[first:last]
        fed = [feed.token_ids.get(row, _FILLER) for row in rows]
        for offset in range(0, len(fed[0]), CHUNK_TOKENS):
            if feed.abandoned:
                break
            chunk = [token_ids[offset : offset + CHUNK_TOKENS] for token_ids in fed]
            self._batch(first, last).run(chunk, [feed.lengths[row] + offset for row in rows], feed.encoding)

    def _neighbours(self, feed: Feed) -> list[tuple[int, int]]:
        """Return the places of the fed rows as few ranges, each from `first` to before `last`."""
        places = [place for place, row in enumerate(self._rows) if row in feed.token_ids]
        stretches = [(places[0], places[0] + 1)]
        for place in places[1:]:
            first, last = stretches[-1]
            gap = self._rows[last:place]
            if len(gap) <= _MAX_GAP and all(feed.lengths[row] < self._context_tokens for row in gap):
                stretches[-1] = (first, place + 1)
            else:
                stretches.append((place, place + 1))
        return stretches

    def _make(self, copy: Copy) -> None:
        if copy.made:
            return
        source, target = self._rows.index(copy.source), self._rows.index(copy.target)
        for buffer in self._kv:
            buffer[target, :, copy.start : copy.end] = buffer[source, :, copy.start : copy.end]
        copy.made = True

    def _batch(self, first: int, last: int) -> _Batch:
        if (first, last) not in self._batches:
            kv = [buffer[first:last] for buffer in self._kv]
            logits = self._logits[first:last]
            self._batches[first, last] = _Batch(self._session, self._graph, kv, logits, self._chunk_logits)
        return self._batches[first, last]

    def _reserve(self, tokens: int, rows: list[int]) -> None:
        """Grow the buffers, by doubling, to hold `tokens` tokens and these rows; keep their content."""
        if tokens <= self._capacity and rows == self._rows:
            return
        capacity = max(FIRST_CAPACITY, self._capacity)
        while capacity < tokens:
            capacity *= 2
        capacity = min(capacity, self._context_tokens)
        kept = [rows.index(row) for row in self._rows]
        graph = self._graph
        grown = []
        for index in range(len(graph.kv_names)):
            # Zeros, so that the system hands out each page only when it is first written.
            buffer = np.zeros((len(rows), graph.kv_heads, capacity, graph.kv_width), graph.kv_dtype)
            if self._kv:
                buffer[kept, :, : self._capacity] = self._kv[index]
            grown.append(buffer)
        self._kv, self._capacity, self._rows = grown, capacity, rows
        self._logits = np.empty((len(rows), graph.logits_width), graph.logits_dtype)
        self._batches = {}


class _Batch:
    """Neighbouring rows, bound to run as one forward: of one token each, or of a chunk if there is but one row."""

    def __init__(
        self,
        session: Any,
        graph: Graph,
        kv: Sequence[NDArray[Any]],  # each [rows, heads, capacity, width]
        logits: NDArray[Any],  # [rows, logits_width], where the logits after the last token go
        chunk_logits: NDArray[Any],
    ) -> None:
        self._session = session
        self._graph = graph
        self._binding = session.io_binding()
        self._logits = logits
        self._chunk_logits = chunk_logits
        self._bound_tokens = 0  # the chunk length that the logits are bound for
        for name, buffer in zip(graph.kv_names, kv, strict=True):
            where = ("cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            self._binding.bind_input(name, *where)
            self._binding.bind_output(name.replace(PAST, PRESENT), *where)

    def run(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int], encoding: Encoding | None) -> None:
        """Feed each row its tokens [rows][count], from its own position on."""
        count = len(token_ids[0])
        if count != self._bound_tokens:
            self._bind_logits(count)
        ids = np.array(token_ids, np.int64)
        ends = np.array(starts)[:, np.newaxis] + count
        mask = (np.arange(ends.max()) < ends).astype(np.int64)  # [rows, longest]
        self._binding.bind_cpu_input("input_ids", ids)
        self._binding.bind_cpu_input("attention_mask", mask)
        if self._graph.encoding_width:
            added = self._graph.conditioning(encoding, starts, count)
            self._binding.bind_cpu_input(CONDITIONING, added)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's errors have no common base class
            where = ", ".join(f"{start} to {start + count - 1}" for start in starts)
            raise ModelError(f"the device's model failed on tokens {where}: {error}") from error
        if count > 1:
            self._logits[0] = self._chunk_logits[count - 1]

    def _bind_logits(self, count: int) -> None:
        """Bind the logits of a chunk; those of single tokens go straight to where the caller reads them."""
        logits = self._logits[:, np.newaxis] if count == 1 else self._chunk_logits[np.newaxis, :count]
        self._binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        self._bound_tokens = count


def _order(branches: int) -> list[int]:
    """Return the rows in the order of the buffers: the text in the middle, so that two branches are next to it."""
    left = range(1, branches + 1, 2)
    right = range(2, branches + 1, 2)
    return [*reversed(left), TEXT_ROW, *right]
