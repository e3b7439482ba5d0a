"""Keys and values of rows for a graph of standard operators, and the forwards over them.

The graph returns the keys and values of all tokens. They are the input of the row's next forward, so nothing is copied
here while a text grows. Rows have different lengths, so each runs in a forward of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaperone_common.conditioning import Encoding
from chaperone_common.errors import ModelError
from edge_client.model.onnx_cache import CHUNK_TOKENS, CONDITIONING, PAST, PRESENT, Copy, Feed, Graph
from edge_client.ports import TEXT_ROW

_KeysAndValues = list[NDArray[Any]]  # each [1, heads, tokens, width], and never written


class PortableCache:
    """Keys and values of a text and its branches; after construction only the worker touches it, as with `RowCache`."""

    def __init__(self, session: Any, graph: Graph) -> None:
        self._session = session
        self._graph = graph
        self._outputs = ["logits", *(name.replace(PAST, PRESENT) for name in graph.kv_names)]
        self._rows: dict[int, _KeysAndValues] = {TEXT_ROW: self._empty()}

    def feed(self, feed: Feed) -> dict[int, NDArray[np.float32]]:
        """Read the tokens; returns the logits [wanted, logits_width] of each row."""
        for copy in feed.copies:
            self._make(copy)
        scores = {}
        for row, token_ids in feed.token_ids.items():
            logits = np.empty((1, self._graph.logits_width), np.float32)
            for offset in range(0, len(token_ids), CHUNK_TOKENS):
                if feed.abandoned:
                    break
                chunk = token_ids[offset : offset + CHUNK_TOKENS]
                logits = self._forward(row, feed.lengths[row] + offset, chunk, feed.encoding)
            scores[row] = logits if feed.every else logits[-1:]
        return scores

    def drop_branches(self, copies: Sequence[Copy]) -> None:
        """Keep the text's row alone, after these copies were made."""
        for copy in copies:
            self._make(copy)
        self._rows = {TEXT_ROW: self._rows[TEXT_ROW]}

    def set_branches(self, branches: int) -> None:
        """Do nothing: a branch takes memory when it is first forked."""

    def _forward(
        self, row: int, start: int, token_ids: Sequence[int], encoding: Encoding | None
    ) -> NDArray[np.float32]:
        """Feed a row its tokens from position `start` on; return the logits [tokens, logits_width]."""
        end = start + len(token_ids)
        held = self._rows.get(row) or self._empty()
        inputs = {name: _first(array, start) for name, array in zip(self._graph.kv_names, held, strict=True)}
        inputs["input_ids"] = np.array([token_ids], np.int64)
        inputs["attention_mask"] = np.ones((1, end), np.int64)
        if self._graph.takes_positions:
            inputs["position_ids"] = np.arange(start, end, dtype=np.int64)[np.newaxis]
        if self._graph.encoding_width:
            inputs[CONDITIONING] = self._graph.conditioning(encoding, [start], len(token_ids))
        try:
            logits, *present = self._session.run(self._outputs, inputs)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise ModelError(f"the device's model failed on tokens {start} to {end - 1}: {error}") from error
        self._rows[row] = present
        scores: NDArray[np.float32] = logits[0].astype(np.float32, copy=False)
        return scores

    def _make(self, copy: Copy) -> None:
        """Give the target the source's tokens up to the end. Before the copy's start, both have the same tokens."""
        if not copy.made:
            self._rows[copy.target] = [_first(array, copy.end) for array in self._rows[copy.source]]
            copy.made = True

    def _empty(self) -> _KeysAndValues:
        shape = (1, self._graph.kv_heads, 0, self._graph.kv_width)
        return [np.zeros(shape, self._graph.kv_dtype) for _ in self._graph.kv_names]


def _first(array: NDArray[Any], tokens: int) -> NDArray[Any]:
    """Return the keys or values of the first tokens; the array itself if it holds no others."""
    return array if array.shape[2] == tokens else np.ascontiguousarray(array[:, :, :tokens])
