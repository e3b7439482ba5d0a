"""Entries of a journal with texts of numbers."""

from __future__ import annotations

from typing import Any

from chaperone_common.types import Promises, SamplingParams
from edge_client.engine.unaudited import UnauditedText

PROMISES = Promises(0.9, 0.1)


def unaudited(*token_ids: int, **changes: Any) -> UnauditedText:
    """Return a text whose first token was read, the next two skipped, and the others unverified."""
    fields: dict[str, Any] = {
        "model_digest": "large",
        "tokenizer_digest": "words",
        "sampling": SamplingParams(temperature=0.7, seed=2**64 - 1),
        "prompt_token_ids": (7, 8, 9),
        "token_ids": token_ids or (1, 2, 3, 4, 5),
        "start": 4,
        "skipped": ((4, 6),),
        "risk": 0.25,
    }
    return UnauditedText(**{**fields, **changes})
