"""Tokens as text for those who read along: final ones, cut at stop strings, and provisional ones."""

from __future__ import annotations

from collections.abc import Sequence

from edge_client.text import DetokenizerStream, StopScanner, Tokenizer


class CommittedText:
    """Implements `OutputText`: whole characters only, nothing of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, resumed: Sequence[int] = ()) -> None:
        """`resumed` tokens were shown by an earlier generation: they are read, and their text is not given again."""
        self._detokenizer = DetokenizerStream(tokenizer)
        self._scanner = StopScanner(stop)
        for token_id in resumed:
            self.push(token_id)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met, also in resumed tokens or in what `flush` returned: the text has ended."""
        return self._scanner.stopped

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text that a token completes, and whether a stop string was completed with it."""
        return self._scanner.push(self._detokenizer.push(token_id))

    def flush(self) -> str:
        """The rest of the text, once no token follows; see `stopped` afterwards."""
        text, _ = self._scanner.push(self._detokenizer.flush())
        return text + self._scanner.flush()


class ProvisionalText:
    """The text of tokens by position, where tokens may be replaced: whole characters, stop strings included."""

    def __init__(self, tokenizer: Tokenizer, start: int, *, resumed: Sequence[int] = ()) -> None:
        """`start` is the first position after the prompt; `resumed` tokens stand from there."""
        self._detokenizer = DetokenizerStream(tokenizer)
        self._start = start
        for token_id in resumed:
            self._detokenizer.push(token_id)

    @property
    def end(self) -> int:
        """The position of the next token."""
        return self._start + len(self._detokenizer)

    def push(self, position: int, token_id: int) -> str:
        """Return the text that a token completes, after the tokens before its position; later ones are forgotten.

        Raises ValueError for a position beyond the next one.
        """
        self.retract(position)
        return self._detokenizer.push(token_id)

    def retract(self, position: int) -> None:
        """Forget the tokens from a position on; raises ValueError for one before the first or beyond the next."""
        self._detokenizer.rewind(self.end - position)
