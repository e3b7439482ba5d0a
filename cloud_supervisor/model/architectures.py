"""The model architectures that can draft on a device or verify in a cloud, by their configuration alone.

An architecture is supported if tests compare it with a forward without cache. All others are refused by name. This
module imports neither torch nor transformers, so that a model can be refused before its weights are fetched or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chaperone_common.artefacts.folders import Role
from chaperone_common.errors import ModelError

# By `model_type` of config.json. In the cloud, a model may keep only one key and one value per token and layer between
# two forwards, so that tokens can be taken back, and branches can be read next to a text.
CLOUD_MODEL_TYPES = frozenset(
    {
        *("ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "granite", "llama", "mistral"),
        *("mixtral", "olmo", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    }
)
# On the device: the ONNX builder makes a correct graph of GroupQueryAttention.
EDGE_MODEL_TYPES = frozenset(
    {"ernie4_5", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3"}
)
# Of these, Optimum exports a graph of standard operators that equals the model.
PORTABLE_MODEL_TYPES = frozenset({"gemma", "llama", "mistral", "phi3", "qwen2", "qwen3"})
_MODEL_TYPES = {"cloud": CLOUD_MODEL_TYPES, "edge": EDGE_MODEL_TYPES}
_PLACES = {"cloud": "in the cloud", "edge": "on the device"}

_ROPE_TYPES = {
    "cloud": frozenset({"default", "linear", "llama3", "longrope", "yarn"}),
    "edge": frozenset({"default", "linear", "llama3", "longrope"}),
}
_PORTABLE_ROPE_TYPES = frozenset({"default", "linear", "llama3"})
_GEMMA3_ROPE_TYPES = frozenset({"default"})  # on the device: the builder would also scale the local layers
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_HEADS = ("ForCausalLM", "LMHeadModel")  # endings of the names of classes that generate text
_GEMMA3_PERIOD = 6  # layers; the builder gives every sixth layer full attention and another rotary base
_ROTARY_STEP = 16  # onnxruntime rotates halves of a multiple of 8 numbers


def refuse_unsupported(config: Any, role: Role, name: str) -> None:
    """Raise ModelError unless a model with this configuration of transformers can take the role.

    The message calls the model `name`.
    """
    refuse_architecture(config.model_type, role, name, _inner(config, _MODEL_TYPES[role]))
    for obstacle in _obstacles(config, role):
        raise ModelError(f"{name}: architecture {config.model_type!r} is not supported {_PLACES[role]} with {obstacle}")


def refuse_architecture(model_type: str, role: Role, name: str, hint: str = "") -> None:
    """Raise ModelError unless a model of this `model_type` can take the role."""
    known = _MODEL_TYPES[role]
    if model_type not in known:
        raise ModelError(
            f"{name}: architecture {model_type!r} is not supported {_PLACES[role]}{hint}; "
            f"tested are {', '.join(sorted(known))}"
        )


def refuse_unportable_architecture(model_type: str, name: str) -> None:
    """Raise ModelError unless the recipe `exporter: optimum` is tested with this `model_type`."""
    if model_type not in PORTABLE_MODEL_TYPES:
        raise ModelError(
            f"{name}: architecture {model_type!r} is not supported with `exporter: optimum`; "
            f"tested are {', '.join(sorted(PORTABLE_MODEL_TYPES))}"
        )


def refuse_unportable(config: Any, name: str) -> None:
    """Raise ModelError unless the recipe `exporter: optimum` is tested with this configuration."""
    refuse_unportable_architecture(config.model_type, name)
    window = next((window for window in layer_windows(config) if window), None)
    if window is not None and window < context_tokens(config):
        raise ModelError(
            f"{name}: an attention window of {window} tokens is not supported with `exporter: optimum`; "
            "leave `exporter` out"
        )
    if (rope_type := _rope_type(config)) not in _PORTABLE_ROPE_TYPES:
        raise ModelError(
            f"{name}: rope_scaling {rope_type!r} is not supported with `exporter: optimum`; "
            f"tested are {', '.join(sorted(_PORTABLE_ROPE_TYPES))}"
        )


def context_tokens(config: Any) -> int:
    """Return the longest text, in tokens, whose cached keys stay valid while it grows.

    `longrope` rotates all keys by other angles once the text is longer than the original context. Cached keys would be
    wrong then.
    """
    most = int(config.max_position_embeddings)
    if _rope_type(config) != "longrope":
        return most
    originals = (
        getattr(config, "original_max_position_embeddings", None),
        config.rope_scaling.get("original_max_position_embeddings"),
    )
    return min([most, *(int(original) for original in originals if original)])


def layer_windows(config: Any) -> list[int | None]:
    """Return how many tokens each layer's attention sees, a token itself included; None means all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _inner(config: Any, known: frozenset[str]) -> str:
    """Return a hint for a multimodal model that wraps a language model."""
    inner = getattr(getattr(config, "text_config", None), "model_type", None)
    return f" (it wraps {inner!r}; store that language model alone)" if inner in known else ""


def _obstacles(config: Any, role: Role) -> Iterator[str]:
    classes = getattr(config, "architectures", None) or ()
    if classes and not any(each.endswith(_HEADS) for each in classes):
        yield f"class {', '.join(classes)}, which writes no text; take one that ends with {' or '.join(_HEADS)}"
    if getattr(config, "quantization_config", None):
        yield "quantised weights; take the weights that they were made of"
    if getattr(config, "use_bidirectional_attention", None):
        yield "use_bidirectional_attention; tested is attention to earlier tokens alone"
    if unknown := {*(getattr(config, "layer_types", None) or ())} - _LAYER_TYPES:
        yield f"layer_types {', '.join(sorted(unknown))}; tested are {', '.join(sorted(_LAYER_TYPES))}"
    rope_types = _ROPE_TYPES[role]
    if role == "edge":
        yield from _edge_obstacles(config)
        if config.model_type == "gemma3_text":
            rope_types = _GEMMA3_ROPE_TYPES
    if (rope_type := _rope_type(config)) not in rope_types:
        yield f"rope_scaling {rope_type!r}; tested are {', '.join(sorted(rope_types))}"


def _edge_obstacles(config: Any) -> Iterator[str]:
    """Yield the settings for which the builder's graph computes something else, or does not run in onnxruntime."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head_dim * getattr(config, "partial_rotary_factor", 1.0))
    if rotated % _ROTARY_STEP:
        yield f"rotary embeddings of {rotated} numbers; a multiple of {_ROTARY_STEP} can be run"
    if config.model_type == "gemma3_text":
        full = [number for number, kind in enumerate(config.layer_types, start=1) if kind == "full_attention"]
        if full != [*range(_GEMMA3_PERIOD, len(config.layer_types) + 1, _GEMMA3_PERIOD)]:
            yield f"full attention in layers {full}; every layer number {_GEMMA3_PERIOD} can be exported"


def _rope_type(config: Any) -> str:
    scaling = getattr(config, "rope_scaling", None) or {}
    return str(scaling.get("rope_type", scaling.get("type", "default")))
