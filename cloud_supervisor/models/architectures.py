"""Which architectures can draft on a device and be supervised in a cloud, told from their configuration alone.

A family is supported if a test holds it against a forward without cache; all others are refused by name. Nothing here
imports torch or transformers, so that a model can be refused before its weights are fetched.
"""

from __future__ import annotations

from typing import Any

from common.config import Role
from common.errors import ModelError

# By `model_type` of config.json.
CLOUD_MODEL_TYPES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "phi3", "qwen2", "qwen3", "smollm3"}
)
EDGE_MODEL_TYPES = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"})


def refuse_unsupported(config: Any, role: Role, name: str) -> None:
    """Raise ModelError unless a model with this configuration of transformers can take the role.

    `name` is what the message calls the model.
    """
    known = EDGE_MODEL_TYPES if role == "edge" else CLOUD_MODEL_TYPES
    if config.model_type not in known:
        raise ModelError(
            f"{name}: model_type {config.model_type!r} is not supported ({role}); tested are: {', '.join(sorted(known))}"
        )
