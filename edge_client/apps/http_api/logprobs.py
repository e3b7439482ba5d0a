"""Log-probabilities in the two forms of OpenAI's API.

Both list the tokens that have a text, those of a stop string included. Control tokens, such as end-of-text, are left
out. Offsets count characters of the answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from chaperone_common.logprobs import Logprob, TokenLogprobs


def shown(found: Iterable[TokenLogprobs | None]) -> list[TokenLogprobs]:
    """Return the entries of tokens that have a text."""
    return [each for each in found if each is not None and each.chosen.token_bytes]


def of_chat(found: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Return the `logprobs` of a choice of a chat."""
    content = [
        {**_of_chat(each.chosen), "top_logprobs": [_of_chat(other) for other in each.top_logprobs]} for each in found
    ]
    return {"content": content, "refusal": None}


class Offsets:
    """Counts the characters before each token of a text."""

    def __init__(self) -> None:
        self._characters = 0  # complete ones
        self._held = b""  # a part of one

    def next(self, token_bytes: bytes) -> int:
        """Return the offset of the next token, which adds these bytes; it may continue a character."""
        continues = 0x80 <= token_bytes[0] < 0xC0
        offset = self._characters + (bool(self._held) and not continues)
        text, read = codecs.utf_8_decode(self._held + token_bytes, "replace", False)
        self._characters += len(text)
        self._held = (self._held + token_bytes)[read:]
        return offset


def of_completion(found: Sequence[TokenLogprobs], offsets: Offsets) -> dict[str, Any]:
    """Return the `logprobs` of a choice of a completion; `offsets` has counted the tokens before."""
    return {
        "tokens": [_name(each.chosen) for each in found],
        "token_logprobs": [each.chosen.logprob for each in found],
        "top_logprobs": [
            {_name(other): other.logprob for other in (*each.top_logprobs, each.chosen)} for each in found
        ],
        "text_offset": [offsets.next(each.chosen.token_bytes) for each in found],
    }


def sources(found: Iterable[TokenLogprobs]) -> list[str]:
    """Return the model that each entry belongs to: `cloud` or `device`."""
    return [str(each.source) for each in found]


def _of_chat(logprob: Logprob) -> dict[str, Any]:
    token_bytes = list(logprob.token_bytes) or None  # null: a control token, which has a name and no bytes
    return {"token": logprob.token, "logprob": logprob.logprob, "bytes": token_bytes}


def _name(logprob: Logprob) -> str:
    """Return the text of a token; for a part of a character `bytes:` and its bytes in hexadecimal, as OpenAI does."""
    try:
        return logprob.token_bytes.decode() or logprob.token
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in logprob.token_bytes)
