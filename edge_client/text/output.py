"""The text of a generation: of final tokens, cut at stop strings, and of provisional ones."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from chaperone_common.session import Audited, Committed, Drafted, Retracted, SessionEvent
from edge_client.text import DetokenizerStream, StopScanner, Tokenizer
from edge_client.text.named_logprobs import named


class EventText:
    """Adds text to the events of one generation; implements `OutputText`."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], start: int, *, resumed: Sequence[int] = ()) -> None:
        """Begin at position `start`, the first after the prompt.

        An earlier generation has shown the `resumed` tokens. Their text is not returned again.
        """
        self._tokenizer = tokenizer
        self._committed = CommittedText(tokenizer, stop, resumed=resumed)
        self._provisional = ProvisionalText(tokenizer, start, resumed=resumed)

    @property
    def stopped(self) -> bool:
        """True if a stop string was met, also in the resumed tokens or in what `flush` returned."""
        return self._committed.stopped

    def follow(self, event: SessionEvent) -> tuple[SessionEvent, bool]:
        """Return the event with the text it adds, and True if a stop string was completed with it."""
        match event:
            case Drafted(position, token_id):
                return replace(event, text=self._provisional.push(position, token_id)), False
            case Retracted(position):
                self._provisional.retract(position)
            case Committed(position, token_id):
                if position == self._provisional.end:  # the cloud's own token
                    self._provisional.push(position, token_id)
                logprobs = event.logprobs and named(event.logprobs, self._tokenizer, started=self._committed.started)
                text, stopped = self._committed.push(token_id)
                return replace(event, text=text, logprobs=logprobs), stopped
            case Audited():
                pass
        return event, False

    def flush(self) -> str:
        """Return the rest of the text, once no token follows."""
        return self._committed.flush()


class CommittedText:
    """The text of final tokens: whole characters only, nothing of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, resumed: Sequence[int] = ()) -> None:
        """Begin after the `resumed` tokens, whose text an earlier generation has shown."""
        self._detokenizer = DetokenizerStream(tokenizer)
        self._scanner = StopScanner(stop)
        for token_id in resumed:
            self.push(token_id)

    @property
    def stopped(self) -> bool:
        """True if a stop string was met, also in the resumed tokens or in what `flush` returned."""
        return self._scanner.stopped

    @property
    def started(self) -> bool:
        """True if a token has added bytes to the text."""
        return self._detokenizer.started

    def copy(self) -> CommittedText:
        """Return a text that goes on from here by itself."""
        other = copy(self)
        other._detokenizer, other._scanner = self._detokenizer.copy(), copy(self._scanner)
        return other

    def push(self, token_id: int) -> tuple[str, bool]:
        """Return the text that a token completes, and True if a stop string was completed with it."""
        return self._scanner.push(self._detokenizer.push(token_id))

    def flush(self) -> str:
        """Return the rest of the text, once no token follows. It may complete a stop string; see `stopped`."""
        text, _ = self._scanner.push(self._detokenizer.flush())
        return text + self._scanner.flush()


class ProvisionalText:
    """The text of all tokens, where provisional ones may be replaced: whole characters, stop strings included."""

    def __init__(self, tokenizer: Tokenizer, start: int, *, resumed: Sequence[int] = ()) -> None:
        """Begin at position `start`, the first after the prompt, with the `resumed` tokens."""
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
