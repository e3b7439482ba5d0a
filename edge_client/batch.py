"""Prompts from a JSON Lines file, results into another: one line in, one line out, whatever happens to it."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from common.errors import ChaperoneError, InvalidRequest
from edge_client.client import EdgeClient
from edge_client.generation import Collector, GenerationRequest, Prompt

PARAMETERS = (
    *("mode", "catch", "max_deviation"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "max_new_tokens", "stop", "raw"),
)
_KEYS = ("id", "prompt", "messages", *PARAMETERS)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input: an object, or what is wrong with it."""

    number: int
    id: Any
    fields: dict[str, Any]
    error: InvalidRequest | None = None


def read_lines(lines: Iterable[bytes]) -> Iterator[Line]:
    """Parse lines; blank ones are skipped, bad ones carry what is wrong with them."""
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            fields = _parse(raw)
            yield Line(number, fields.get("id"), fields)
        except InvalidRequest as error:
            yield Line(number, None, {}, error)


async def run_batch(
    client: EdgeClient, lines: Iterable[Line], defaults: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    """Generate line by line; yields what to write: the result, or an `error` with what was final before it."""
    for line in lines:
        try:
            request = request_of(client, line, defaults)
        except ChaperoneError as error:
            message = f"line {line.number}: {error.message}"
            yield {"id": line.id, "error": {"type": type(error).__name__, "message": message}}
            continue
        collected = Collector(request)
        try:
            async with aclosing(client.stream(request)) as events:
                async for event in events:
                    collected.add(event)
            yield {"id": line.id, **collected.result().to_json()}
        except ChaperoneError as error:
            yield {"id": line.id, **failure_json(collected, error, where=f"line {line.number}: ")}


def failure_json(collected: Collector, error: ChaperoneError, *, where: str = "") -> dict[str, Any]:
    """What went wrong, and what was final before, so that it can be resumed."""
    ending = collected.ending
    return {
        "error": {"type": type(error).__name__, "message": f"{where}{error.message}"},
        "prompt_token_ids": list(collected.request.prompt.token_ids),
        "token_ids": list(collected.token_ids),
        "text": collected.text,
        "origins": [str(origin) for origin in collected.origins],
        "finish_reason": None,
        "stats": ending.stats.to_json() if ending is not None else None,
    }


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False).encode()  # an escape may stand for half a character
    except UnicodeEncodeError:
        raise InvalidRequest("not valid JSON: lone surrogate; write characters as they are, or as a pair") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"a JSON object is expected, this is {type(fields).__name__}")
    return fields


def request_of(client: EdgeClient, line: Line, defaults: dict[str, Any]) -> GenerationRequest:
    """What a line asks for; raises InvalidRequest."""
    if line.error is not None:
        raise line.error
    _check_keys(line.fields)
    given = {name: line.fields[name] for name in PARAMETERS if line.fields.get(name) is not None}
    prompt: Prompt = line.fields["prompt" if "prompt" in line.fields else "messages"]
    return client.request(prompt, **{**defaults, **given})


def _check_keys(fields: dict[str, Any]) -> None:
    for key in fields:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            raise InvalidRequest(f"{key}: unknown key" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if fields.get("id") is None:
        raise InvalidRequest("id: missing; give each line one, so that results can be matched")
    if ("prompt" in fields) == ("messages" in fields):
        raise InvalidRequest("prompt, messages: give exactly one of them")
    if "prompt" in fields and not isinstance(fields["prompt"], str):
        raise InvalidRequest(f"prompt: {fields['prompt']!r} is not text")
    if "messages" in fields and not isinstance(fields["messages"], list):
        raise InvalidRequest(f"messages: {fields['messages']!r} is not a list")
    if fields.get("raw") and "messages" in fields:
        raise InvalidRequest("raw: messages always go through the chat template; give prompt instead")
    if not isinstance(fields.get("raw", False), bool):
        raise InvalidRequest(f"raw: {fields['raw']!r} is neither true nor false")
