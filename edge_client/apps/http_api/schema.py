"""The OpenAPI description of the endpoint. Bodies are parsed by `requests.parse`, so it is written here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART, "minItems": 1}]}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": _CONTENT,
        "name": {"type": "string"},
        "refusal": {"type": ["string", "null"]},  # this and `annotations`: of an answer that is sent back
        "annotations": {"type": ["array", "null"]},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_REASONS = {
    400: "the request cannot be answered; `param` names the field",
    401: "no API key, or another one",
    403: "another `Host` than this machine's",
    404: "another model than the one served",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not `application/json`",
    429: "too many requests, or the cloud refuses for now",
    500: "the endpoint failed",
    502: "the cloud does not take this device",
    503: "the cloud is lost",
    504: "the cloud, or the whole text, took too long",
}


def responses(kind: str, *, streamed: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a path: an object of `kind`, server-sent events if `streamed`, and the errors."""
    answer = {"type": "object", "properties": {"object": {"const": kind}}, "required": ["object"]}
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if streamed:
        event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": reason, "content": {"application/json": {"schema": _ERROR}}}
        for status, reason in _REASONS.items()
    }
    return {200: {"description": "the answer", "content": content}, **errors}


def body(kind: type[BaseModel], model: str) -> dict[str, Any]:
    """Return the description of a request body for the one model that is served."""
    schema = kind.model_json_schema()
    inlined = _inlined(schema, schema.pop("$defs", {}))
    properties = inlined["properties"]
    properties["model"] = {"const": model}
    if "messages" in properties:
        properties["messages"]["items"] = _MESSAGE
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema with its definitions in the places that refer to them."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if (reference := schema.get("$ref")) is not None:
        return _inlined(definitions[reference.removeprefix("#/$defs/")], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}
