"""Tokens to text as they come, whole characters only."""

from __future__ import annotations

import codecs
from copy import copy

from edge_client.text.tokenizer import Tokenizer


class DetokenizerStream:
    """Turns token ids into text one by one, never a part of a character.

    The pieces, with the flushed rest, add up to `tokenizer.decode` of all ids. At most the three bytes of an unfinished
    character are held back. Each token costs the same, however long the text is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._states: list[tuple[bytes, bool]] = [(b"", False)]  # before each token: bytes held back, text has started

    def __len__(self) -> int:
        """Count the tokens taken and not forgotten."""
        return len(self._states) - 1

    @property
    def started(self) -> bool:
        """True if a token has added bytes: a first token may lose a leading space."""
        return self._states[-1][1]

    def push(self, token_id: int) -> str:
        """Take one more token; returns the text that is now certain."""
        held, started = self._states[-1]
        piece, started = self._token_bytes.piece(token_id, started)
        text, read = codecs.utf_8_decode(held + piece, "replace", False)
        self._states.append(((held + piece)[read:], started))
        return text

    def copy(self) -> DetokenizerStream:
        """Return a stream that goes on from here by itself."""
        other = copy(self)
        other._states = [*self._states]
        return other

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens, as if they had never been pushed."""
        if not 0 <= count <= len(self):
            raise ValueError(f"count: {count} is not within 0 to {len(self)}, the tokens pushed")
        del self._states[len(self._states) - count :]

    def flush(self) -> str:
        """Return the text still held back, when no more tokens come; a second call has nothing left to give."""
        held, started = self._states[-1]
        self._states[-1] = (b"", started)
        return held.decode("utf-8", "replace")
