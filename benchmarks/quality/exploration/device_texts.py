"""The device's model over several texts: each has a row of a batch, and rows are read together.

A row gets the same logits as alone (`edge_client/model/onnx_cache.py`), up to the rounding of kernels. 32 texts take a
third of the time that they take one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chaperone_common.errors import PromptTooLong
from edge_client.model.onnx_cache import CHUNK_TOKENS, Feed, RowCache
from edge_client.model.onnx_model import OnnxModel

ROWS = 32  # rows of a batch; more are hardly faster

Logits = NDArray[np.float32]  # [..., vocabulary], valid until the next read


class _Batch:
    """Texts in the rows of one cache, and the tokens that each row has read."""

    def __init__(self, model: OnnxModel) -> None:
        self.read: list[list[int]] = [[] for _ in range(ROWS)]
        self._model = model
        self._cache = RowCache(
            model.session, model.graph, model.chunk_logits, branches=ROWS - 1, context_tokens=model.context_tokens
        )

    def feed(self, token_ids: Mapping[int, Sequence[int]], *, every: bool = False) -> dict[int, Logits]:
        """Return the logits [wanted, vocabulary] of each row, after its last token or after every one.

        Raises PromptTooLong for a text that the model cannot hold.
        """
        fed = {row: tuple(tokens) for row, tokens in token_ids.items()}
        for row, tokens in fed.items():
            if (needed := len(self.read[row]) + len(tokens)) > self._model.context_tokens:
                raise PromptTooLong(f"text: {needed} tokens, but the device's model holds {self._model.context_tokens}")
        fresh = self._cache.feed(Feed(fed, tuple(len(read) for read in self.read), every=every))
        for row, tokens in fed.items():
            self.read[row] += tokens
        return {row: logits[:, : self._model.vocabulary_size] for row, logits in fresh.items()}


@dataclass(frozen=True, slots=True)
class _Seat:
    batch: _Batch
    row: int

    def unread(self, text: Sequence[int], least: int) -> Sequence[int]:
        """Return the unread end of a text, of at least `least` tokens, and rewind the row to before it."""
        read = self.batch.read[self.row]
        shared = next((at for at, pair in enumerate(zip(read, text, strict=False)) if pair[0] != pair[1]), len(read))
        del read[min(shared, len(text) - least) :]
        return text[len(read) :]


class DeviceTexts:
    """Logits of the next tokens after texts, over the token ids that the model knows.

    Call `after` and `along` in the model's worker, and `leave` while the worker is idle.
    """

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._free: list[_Seat] = []
        self._seats: dict[str, _Seat] = {}

    def after(self, texts: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Logits]]:
        """Return the logits after each text; a text keeps its name while it grows or changes."""
        steps: dict[_Batch, dict[int, tuple[str, int]]] = {}
        for name, text in texts.items():
            seat = self._seat(name)
            tokens = seat.unread(text, 1)
            if len(tokens) > 1:
                yield name, seat.batch.feed({seat.row: tokens})[seat.row][-1]
            else:
                steps.setdefault(seat.batch, {})[seat.row] = name, tokens[0]
        for batch, step in steps.items():
            logits = batch.feed({row: (token,) for row, (_, token) in step.items()})
            for row, (name, _) in step.items():
                yield name, logits[row][-1]

    def along(self, name: str, text: Sequence[int], count: int) -> Iterator[Logits]:
        """Return the logits after each of the last `count` tokens of a text, which are read in chunks."""
        seat = self._seat(name)
        tokens = seat.unread(text, count)
        if len(tokens) > count:
            seat.batch.feed({seat.row: tokens[:-count]})
        for first in range(len(tokens) - count, len(tokens), CHUNK_TOKENS):
            yield from seat.batch.feed({seat.row: tokens[first : first + CHUNK_TOKENS]}, every=True)[seat.row]

    def leave(self, name: str) -> None:
        """Free the row of a text, if it has one."""
        seat = self._seats.pop(name, None)
        if seat is not None:
            seat.batch.read[seat.row].clear()
            self._free.append(seat)

    def _seat(self, name: str) -> _Seat:
        if name not in self._seats:
            if not self._free:
                batch = _Batch(self._model)
                self._free = [_Seat(batch, row) for row in reversed(range(ROWS))]
            self._seats[name] = self._free.pop()
        return self._seats[name]
