"""The bytes that each token adds to a text: what a decoder does, token by token.

The decoders in use add the same bytes for the same token wherever it stands. Only the first token of a text may differ:
it may lose a leading space. So each token can be decoded by itself, and bytes that are not UTF-8 harm only themselves.
The `tokenizers` library differs in one case: where one of a run of byte tokens is wrong, the whole run becomes U+FFFD,
also bytes that were a character before the wrong one came. Here these stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from chaperone_common.artefacts.vocabulary import byte_of_character, byte_of_token


class TokenBytes(Protocol):
    """The bytes of tokens."""

    @property
    def complete(self) -> bool:
        """True if every byte has a token, so that no text is shortened to an unknown token."""

    def piece(self, token_id: int, started: bool) -> tuple[bytes, bool]:
        """Return the bytes a token adds, and whether the text has started then; control tokens add none."""


class ByteLevelTokens:
    """Tokens whose characters stand for one byte each, as in GPT-2, Llama 3 and Qwen."""

    complete = True

    def __init__(self, text_of: Callable[[int], str | None], skipped: frozenset[int]) -> None:
        self._text_of = text_of
        self._skipped = skipped
        self._table = byte_of_character()

    def piece(self, token_id: int, started: bool) -> tuple[bytes, bool]:
        text = None if token_id in self._skipped else self._text_of(token_id)
        if text is None:
            return b"", started
        try:
            return bytes(self._table[character] for character in text), True
        except KeyError:  # an added token that is written as it is
            return text.encode(), True


class FallbackTokens:
    """Tokens that are text, and perhaps `<0x0A>` for single bytes, as in Llama 2, Mistral and Gemma."""

    def __init__(
        self,
        text_of: Callable[[int], str | None],
        decode: Callable[[Sequence[int]], str],
        skipped: frozenset[int],
        *,
        with_bytes: bool,
    ) -> None:
        self._text_of = text_of
        self._decode = decode
        self._skipped = skipped
        self.complete = with_bytes
        self._pieces: dict[tuple[int, bool], bytes] = {}  # by token and whether the text has started

    def piece(self, token_id: int, started: bool) -> tuple[bytes, bool]:
        if token_id in self._skipped or self._text_of(token_id) is None:
            return b"", started
        known = self._pieces.get((token_id, started))
        if known is None:
            known = self._pieces[token_id, started] = self._found(token_id, started)
        return known, True

    def _found(self, token_id: int, started: bool) -> bytes:
        first = self._decode([token_id])
        byte = byte_of_token(self._text_of(token_id) or "") if self.complete else None
        if byte is not None:
            return b"" if not started and not first else bytes([byte])
        if not started:
            return first.encode()
        return self._decode([token_id, token_id])[len(first) :].encode()
