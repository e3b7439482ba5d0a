"""Paths that programs expect of OpenAI's other APIs, or of another server, and where to go instead."""

from __future__ import annotations

CHAT, TEXT, LIST = "/v1/chat/completions", "/v1/completions", "/v1/models"
_SERVED = (CHAT, TEXT, LIST)

# The second part of a path below /v1, and what it is for.
_NOT_SERVED = {
    "responses": "OpenAI's Responses API",
    "embeddings": "embeddings",
    "audio": "speech",
    "images": "images",
    "videos": "videos",
    "realtime": "OpenAI's Realtime API",
    "moderations": "moderation",
    "assistants": "OpenAI's Assistants API",
    "threads": "OpenAI's Assistants API",
    "conversations": "OpenAI's Conversations API",
    "files": "files",
    "uploads": "files",
    "batches": "batches of files",
    "vector_stores": "vector stores",
    "fine_tuning": "fine-tuning",
    "messages": "Anthropic's Messages API",
    "rerank": "ranking",
}


def problem(path: str, base_url: str) -> str:
    """Return a sentence about a path that is not served; `base_url` is the address that OpenAI's clients need."""
    parts = [part for part in path.split("/") if part]
    served = f"use {CHAT}, {TEXT} or {LIST}"
    if parts[:1] == ["api"]:  # /api/chat, /api/generate, /api/tags
        return (
            f"this is OpenAI's API, not Ollama's; give a client of OpenAI's API the base URL {base_url}, and use {CHAT}"
        )
    if parts[:1] == ["v1"] and (what := _NOT_SERVED.get("".join(parts[1:2]))) is not None:
        return f"{what} is not served here; {served}"
    if any(f"/{'/'.join(parts)}".endswith(known.removeprefix("/v1")) for known in _SERVED):
        return f"the paths of this endpoint begin with /v1 once; set the client's base URL to {base_url}"
    return f"there is no such path here; {served}, or see /openapi.json"
