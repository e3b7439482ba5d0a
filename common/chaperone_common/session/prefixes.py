"""Prompts that begin with the text of an earlier session.

The next turn of a conversation sends only its own tokens: an Open names the session that ended before, and a digest of
the text up to which both agree. A cloud that does not hold that text any longer answers NOT_FOUND, and the device sends
the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from chaperone_common.frames import PREFIX_DIGEST_BYTES, Open, Prefix
from chaperone_common.types import SessionId


def digest_of(token_ids: Sequence[int]) -> bytes:
    """Return the digest of a text: BLAKE2b over its ids, in four bytes each, the lowest one first."""
    return blake2b(np.asarray(token_ids, "<u4").tobytes(), digest_size=PREFIX_DIGEST_BYTES).digest()


def shortened(opening: Open, session_id: SessionId, length: int) -> Open:
    """Return an Open that refers to the first `length` tokens of its prompt as those of an earlier session."""
    prompt = opening.prompt_token_ids
    prefix = Prefix(session_id, length, digest_of(prompt[:length]))
    return replace(opening, prompt_token_ids=prompt[length:], prefix=prefix)


def completed(opening: Open, text: Sequence[int] | None) -> Open | None:
    """Return a shortened Open with its whole prompt, from the text that is held of the session that it names.

    None if there is no such text, or if it is another one.
    """
    prefix = opening.prefix
    if prefix is None or text is None or len(text) < prefix.length:
        return None
    first = tuple(text[: prefix.length])
    if digest_of(first) != prefix.digest:
        return None
    return replace(opening, prompt_token_ids=(*first, *opening.prompt_token_ids), prefix=None)
