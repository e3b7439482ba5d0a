"""The text of committed tokens, cut at stop strings."""

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

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text that a token completes, and whether a stop string was completed with it."""
        return self._scanner.push(self._detokenizer.push(token_id))

    def flush(self) -> str:
        """The rest of the text, once no token follows."""
        text, _ = self._scanner.push(self._detokenizer.flush())
        return text + self._scanner.flush()
