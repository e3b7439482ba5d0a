"""The entries of the journal, and their lines of JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import Any

from chaperone_common.errors import InvalidRequest
from chaperone_common.types import Promises, SamplingParams
from edge_client.engine.unaudited import UnauditedText

_FORMAT = 1
_MAX_ID = 2**32 - 1


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A text that waits for its audit, and the promises under which it was written."""

    id: str
    text: UnauditedText
    promises: Promises


@dataclass(frozen=True, slots=True)
class Removal:
    """A line that removes an earlier one."""

    id: str


def encode(line: JournalEntry | Removal) -> bytes:
    """Return the line, with its line feed."""
    match line:
        case Removal(entry_id):
            fields: dict[str, Any] = {"removed": entry_id}
        case JournalEntry(entry_id, text, promises):
            fields = {"id": entry_id, "text": asdict(text), "promises": asdict(promises)}
    return json.dumps({"format": _FORMAT, **fields}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> JournalEntry | Removal:
    """Return the entry or the removal of a line; raises ValueError for anything else."""
    try:
        fields = json.loads(line)
        if fields.pop("format") != _FORMAT:
            raise TypeError("another format")
        if "removed" in fields:
            return Removal(_string(fields["removed"]))
        text = fields["text"]
        sampling = SamplingParams(**text.pop("sampling"))
        prompt, tokens = _ids(text.pop("prompt_token_ids")), _ids(text.pop("token_ids"))
        skipped = tuple((begin, end) for begin, end in text.pop("skipped"))
        entry = JournalEntry(
            _string(fields["id"]),
            UnauditedText(sampling=sampling, prompt_token_ids=prompt, token_ids=tokens, skipped=skipped, **text),
            Promises(**fields["promises"]),
        )
        is_sound = _is_sound(entry.text)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError, InvalidRequest) as error:
        raise ValueError(f"not a line of the journal: {type(error).__name__}") from None
    if not is_sound:
        raise ValueError("not a line of the journal: its positions do not fit its text")
    return entry


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _ids(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and 0 <= value <= _MAX_ID for value in values):
        raise TypeError("not a list of token ids")
    return tuple(values)


def _is_sound(text: UnauditedText) -> bool:
    """Return whether the positions of a text are those of its unread tokens, and its numbers are in range."""
    positions = [*chain.from_iterable(text.skipped)]
    return (
        all(type(position) is int for position in (text.start, *positions))
        and 0 < len(text.prompt_token_ids) <= text.start < text.end
        and all(begin < end for begin, end in text.skipped)
        and all(before <= after for before, after in pairwise((text.start, *positions, text.end)))
        and all(type(number) in (int, float) and math.isfinite(number) for number in (text.risk, text.weight))
        and text.risk >= 0
        and text.weight >= 1
        and isinstance(text.model_digest, str)
        and isinstance(text.tokenizer_digest, str)
    )
