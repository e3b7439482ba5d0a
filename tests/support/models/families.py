"""Tiny models with random weights of every supported architecture, with a window shorter than the texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers

VOCABULARY = 512  # of the tiny pair's tokenizer
WINDOW = 32
CONTEXT_TOKENS = 512
SLIDING, FULL = "sliding_attention", "full_attention"
GAIN = 1.5  # of each layer's matrices
LOGIT_SCALE = 3.75  # standard deviation of the logits

_SIZES = {
    "vocab_size": VOCABULARY + 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT_TOKENS,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
_GEMMA2 = {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}
_MIXED = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_PHI3 = {"original_max_position_embeddings": CONTEXT_TOKENS}
_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 2.0}

# For each name: the configuration's class, and its fields in addition to the sizes.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ernie4_5": ("Ernie4_5Config", {}),
    "exaone4": ("Exaone4Config", _MIXED),
    "gemma": ("GemmaConfig", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", _GEMMA2 | {"attn_logit_softcapping": 2.0}),
    "gemma2 without a cap": ("Gemma2Config", _GEMMA2 | {"attn_logit_softcapping": None}),
    "gemma3": ("Gemma3TextConfig", _GEMMA2 | {"num_hidden_layers": 6}),
    "glm4": ("Glm4Config", {}),
    "gpt2": ("GPT2Config", {"num_key_value_heads": 4}),
    "granite": ("GraniteConfig", _GRANITE),
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama with rope of llama3": (
        "LlamaConfig",
        {"rope_scaling": _LLAMA3 | {"original_max_position_embeddings": 64}},
    ),
    "llama with linear rope": ("LlamaConfig", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral with a window": ("MistralConfig", {"sliding_window": WINDOW}),
    "mixtral with a window": ("MixtralConfig", {"sliding_window": WINDOW, "num_local_experts": 4}),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", _MIXED),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", _PHI3 | {"sliding_window": None}),
    "phi3 with a window": ("Phi3Config", _PHI3 | {"sliding_window": WINDOW}),
    "phi3 with longrope": (
        "Phi3Config",
        {"sliding_window": None, "original_max_position_embeddings": 256, "rope_scaling": _LONGROPE},
    ),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 with yarn": (
        "Qwen2Config",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ),
    "qwen2 with a window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen2 with a window in half": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {}),
    "qwen3_moe": ("Qwen3MoeConfig", _EXPERTS),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "smollm3 with a window": (
        "SmolLM3Config",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "starcoder2": ("Starcoder2Config", {"sliding_window": WINDOW}),
}


def config_of(family: str, **changes: Any) -> Any:
    """Return the configuration of a family's tiny model, as read from a config.json."""
    kind, extra = FAMILIES[family]
    return getattr(transformers, kind)(**{**_SIZES, **extra, **changes})


def build(family: str, *, seed: int = 0, noise: float = 0.0, **changes: Any) -> Any:
    """Return a model of transformers whose matrices int4 holds exactly.

    `noise` is the share of weights that are moved by one step of quantization.

    Its attention is `eager`, the plainest implementation that supports every architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            config_of(family, **changes), attn_implementation="eager", dtype=torch.float32
        ).eval()
    generator = torch.Generator().manual_seed(seed)
    moves = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
            elif weight is model.get_input_embeddings().weight:
                weight.normal_(std=1 / math.sqrt(weight.shape[1]), generator=generator)
            else:
                steps = 15 * torch.randint(0, 2, weight.shape, generator=generator) - 8
                moved = torch.rand(weight.shape, generator=moves) < noise
                steps = torch.where(moved, steps - steps.sign(), steps)
                weight.copy_(steps * (_gain(model, name) / 7.5 / math.sqrt(weight.shape[-1])))
    return model


def _gain(model: Any, name: str) -> float:
    output = model.get_output_embeddings().weight
    return LOGIT_SCALE if model.get_parameter(name) is output else GAIN
