"""The features of a calibrated risk: the signals of a token and of those before it, and its place in the text.

No feature depends on the cloud's answers, because a gate decides before they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from chaperone_common.types import Signal

FEATURES_VERSION = 1  # a gate that was trained on another version is refused

FEATURES = (
    "log_coupled_margin",
    "log_entropy",
    "log_doubted",  # of 1 - top-1 probability
    "margin",
    "log_varentropy",
    "log_entropy_before",  # of the token before
    "log_margin_before",
    "mean_entropy_4",  # over the last 4 tokens, without this one
    "mean_entropy_16",
    "entropy_rise",  # entropy of this token minus the mean of the last 16
    "position",  # log of tokens since the beginning of the text
    "line_position",  # log of tokens since the last line break
    "fenced",  # inside a code block of Markdown
    "kind",  # of the token, see `TokenKind`
    "kind_before",
    "runner_up_kind",
)

_LEAST = 1e-6
_FENCE = "```"


class TokenKind(IntEnum):
    """The kind of a token by its text."""

    WORD = 0  # begins a word
    PIECE = 1  # continues a word
    NUMBER = 2
    OPERATOR = 3
    SPACE = 4
    NEWLINE = 5
    SPECIAL = 6  # no visible text, or no whole character


def kind_of(text: str) -> TokenKind:
    """Return the kind of a token that decodes to this text."""
    stripped = text.strip(" \t")
    if not text or "\ufffd" in text:
        return TokenKind.SPECIAL
    if "\n" in text:
        return TokenKind.NEWLINE
    if not stripped:
        return TokenKind.SPACE
    if stripped[0].isdigit():
        return TokenKind.NUMBER
    if stripped[0].isalpha() or stripped[0] == "_":
        return TokenKind.WORD if text[0] in " \t" or text[0].isupper() else TokenKind.PIECE
    return TokenKind.OPERATOR


class _Place(NamedTuple):
    """The place of the next token."""

    line_tokens: int = 0  # since the last line break
    fences: int = 0  # complete ones before it
    backticks: int = 0  # at the end of the text; they may become a fence

    @property
    def fenced(self) -> bool:
        """True if an odd number of fences comes before."""
        return (self.fences + self.backticks // len(_FENCE)) % 2 == 1

    def after(self, text: str) -> _Place:
        """Return the place after a token of this text."""
        fences, backticks = self.fences, self.backticks
        for character in text:
            if character == _FENCE[0]:
                backticks += 1
            else:
                fences, backticks = fences + backticks // len(_FENCE), 0
        return _Place(0 if "\n" in text else self.line_tokens + 1, fences, backticks)


class _Written(NamedTuple):
    """A token of the text, as the features of the next ones need it."""

    text: str
    entropy_nats: float  # 0 where the cloud wrote
    coupled_margin: float  # 0 where the cloud wrote
    place_after: _Place


class Features:
    """The features of the tokens of one text, in order."""

    def __init__(self, token_text: Callable[[int], str]) -> None:
        """Begin an empty text; `token_text` decodes one token."""
        self._token_text = token_text
        self._tokens: list[_Written] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def of(self, token_id: int, runner_up: int, signal: Signal) -> list[float]:
        """Return the features of the token that the device would write next, in the order of `FEATURES`."""
        recent = [token.entropy_nats for token in self._tokens[-16:]]
        lately, last = recent[-4:], self._tokens[-1] if self._tokens else None
        mean = sum(recent) / len(recent) if recent else signal.entropy_nats
        place = self._place
        return [
            _log(signal.coupled_margin),
            _log(signal.entropy_nats),
            _log(1.0 - signal.top1_probability),
            signal.margin,
            _log(signal.varentropy),
            _log(last.entropy_nats) if last is not None else 0.0,
            _log(last.coupled_margin) if last is not None else 0.0,
            sum(lately) / len(lately) if lately else signal.entropy_nats,
            mean,
            signal.entropy_nats - mean,
            math.log1p(len(self._tokens)),
            math.log1p(place.line_tokens),
            float(place.fenced),
            float(kind_of(self._token_text(token_id))),
            float(kind_of(last.text)) if last is not None else float(TokenKind.NEWLINE),
            float(kind_of(self._token_text(runner_up))),
        ]

    def append(self, token_id: int, signal: Signal | None) -> None:
        """Append a token to the text; `signal` is None if the device drafted nothing there."""
        text = self._token_text(token_id)
        entropy_nats, margin = (signal.entropy_nats, signal.coupled_margin) if signal is not None else (0.0, 0.0)
        self._tokens.append(_Written(text, entropy_nats, margin, self._place.after(text)))

    def cut(self, length: int) -> None:
        """Forget all but the first tokens of the text."""
        del self._tokens[length:]

    @property
    def _place(self) -> _Place:
        """The place after the last token."""
        return self._tokens[-1].place_after if self._tokens else _Place()


def _log(value: float) -> float:
    return math.log(max(value, _LEAST))
