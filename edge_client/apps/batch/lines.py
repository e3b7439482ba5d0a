"""From a line of JSON to a request, and from a failure to JSON."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from chaperone_common.errors import ChaperoneError, CloudLost, InvalidRequest
from chaperone_common.session import Failed
from chaperone_common.suggestion import cut, did_you_mean, shown
from chaperone_common.types import Mode
from edge_client.apps.batch.prompt_file import MAX_LINE_BYTES
from edge_client.client import EdgeClient
from edge_client.events import Event
from edge_client.generation import Collector, GenerationRequest, Prompt, error_json, logprobs_json
from edge_client.link.diagnosis import after_loss
from edge_client.parameters import GATED_ONLY, check_promised, merged, parse_mode
from edge_client.refused_names import instead_of

PARAMETERS = (
    *("mode", *GATED_ONLY),
    *("temperature", "top_p", "top_k", "min_p", "seed", "max_new_tokens", "stop", "logprobs", "top_logprobs"),
    *("num_beams", "num_return_sequences", "beam_width", "beam_threshold", "length_penalty"),
    *("early_stopping", "one_cache", "best_of"),
    *("raw", "parse_special", "tools"),
)
_KEYS = ("id", "prompt", "messages", *PARAMETERS)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input: its fields, or the error in it."""

    number: int
    id: Any
    fields: dict[str, Any]
    error: InvalidRequest | None = None


def read_lines(lines: Iterable[bytes]) -> Iterator[Line]:
    """Parse lines; skip blank ones. A bad line carries its error."""
    for number, raw in enumerate(lines, start=1):
        if raw.strip():
            yield line_of(number, raw)


def line_of(number: int, raw: bytes) -> Line:
    """Parse one line."""
    try:
        fields = _parse(raw)
        return Line(number, fields.get("id"), fields)
    except InvalidRequest as error:
        return Line(number, None, {}, error)


def in_commands(event: Event, on_loss: str) -> Event:
    """Return an event as the commands report it: they take no `partial`, and write a text again from its beginning."""
    if not (isinstance(event, Failed) and isinstance(event.error, CloudLost) and event.error.partial is not None):
        return event
    lost, partial = event.error, event.error.partial
    beams = partial.params.beams is not None
    remedy = after_loss(partial.mode, on_loss, len(partial.token_ids), "run the same command again", beams=beams)
    error = type(lost)(lost.problem, retry_after_ms=lost.retry_after_ms, remedy=remedy)
    error.partial = partial
    return replace(event, error=error)


def failure_json(collected: Collector, error: ChaperoneError, *, where: str = "") -> dict[str, Any]:
    """Return a failure as JSON, with the final tokens, from which the text can be resumed."""
    ending = collected.ending
    found = collected.wanted_logprobs
    return {
        "error": error_json(error, where=where),
        "prompt_token_ids": list(collected.request.prompt.token_ids),
        "token_ids": list(collected.token_ids),
        "text": collected.text,
        "origins": [str(origin) for origin in collected.origins],
        **({} if found is None else {"logprobs": [logprobs_json(each) for each in found]}),
        "finish_reason": None,
        "stats": ending.stats.to_json() if ending is not None else None,
    }


def _parse(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise InvalidRequest(f"more than {MAX_LINE_BYTES} bytes; shorten the prompt")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidRequest("this is UTF-16; save the file as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        fields = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
        json.dumps(fields, ensure_ascii=False).encode()  # an escape may be half of a surrogate pair
    except UnicodeEncodeError:
        raise InvalidRequest("not valid JSON: lone surrogate; write characters as they are, or as a pair") from None
    except RecursionError:
        raise InvalidRequest("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(f"not valid JSON: {error}{_hint(raw)}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"a JSON object is expected, this is {type(fields).__name__}")
    return fields


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"{shown(key)} is given twice; remove one")
        fields[key] = value
    return fields


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is no finite number")
    return value


def _hint(raw: bytes) -> str:
    if b"\0" in raw:
        return "; there are NUL bytes, as in UTF-16: save the file as UTF-8"
    if b"\r" in raw.strip():
        return "; there are carriage returns: end lines with line feeds"
    return ""


def request_of(client: EdgeClient, line: Line, defaults: dict[str, Any]) -> GenerationRequest:
    """Return the request of a line; raises InvalidRequest."""
    if line.error is not None:
        raise line.error
    _check_keys(line.fields)
    given = {name: line.fields[name] for name in PARAMETERS if line.fields.get(name) is not None}
    prompt: Prompt = line.fields["prompt" if "prompt" in line.fields else "messages"]
    asked: dict[str, Any] = {**merged(defaults, given)}
    mode = parse_mode(asked.get("mode"), client.config.mode)
    check_promised(given, mode)
    if mode is not Mode.GATED:
        asked = {name: value for name, value in asked.items() if name not in GATED_ONLY}
    return client.request(prompt, **asked)


def _check_keys(fields: dict[str, Any]) -> None:
    for key in fields:
        if key not in _KEYS:
            instead = instead_of(key) or f"unknown key{did_you_mean(key, _KEYS)}"
            raise InvalidRequest(f"{cut(key) or repr(key)}: {instead}")
    if fields.get("id") is None:
        raise InvalidRequest("id: missing; give each line one, so that results can be matched")
    if ("prompt" in fields) == ("messages" in fields):
        raise InvalidRequest("prompt, messages: give exactly one of them")
    if "prompt" in fields and not isinstance(fields["prompt"], str):
        raise InvalidRequest(f"prompt: {shown(fields['prompt'])} is not text")
    if "messages" in fields and not isinstance(fields["messages"], list):
        raise InvalidRequest(f"messages: {shown(fields['messages'])} is not a list")
