"""The sizes of a model by its configuration alone, before any weights are fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from chaperone_common.artefacts.registry import EdgeRecipe, PortableRecipe
from chaperone_common.errors import ModelError
from cloud_supervisor.model.architectures import context_tokens

_MOST_LAYERS = 1024  # of a configuration that is built, without memory, to count its weights
_BYTES = {"float32": 4, "bfloat16": 2}
_SCALE_BITS, _OUTPUT_BITS = 32, 8  # of a block of weights in int4; the builder gives the output matrix more bits


@dataclass(frozen=True)
class ModelSizes:
    """The numbers of weights of a model."""

    linear: int  # weights of linear layers, without the output matrix
    output: int  # weights of the output matrix
    embedding: int
    other: int
    tied: bool  # the output matrix is the embedding
    kv_values: int  # numbers in the keys and values of one token
    rotary_values: int  # numbers in the exported tables of rotary embeddings

    @property
    def parameters(self) -> int:
        """All weights, each counted once."""
        return self.linear + self.embedding + self.other + (0 if self.tied else self.output)

    def device_bytes(self, recipe: EdgeRecipe | PortableRecipe) -> int:
        """Return the size of the device's artefact, without its tokenizer."""
        scale_bits = (_SCALE_BITS + 4) / recipe.block_size  # with a zero point
        int4 = (4 + scale_bits) / 8
        rest = 4 * (self.other + self.rotary_values)
        if isinstance(recipe, PortableRecipe):
            return int(int4 * (self.linear + self.output) + 4 * self.embedding + rest)
        int8 = (_OUTPUT_BITS + (_SCALE_BITS + 8) / recipe.block_size) / 8
        embedding = 0 if self.tied else 4 * self.embedding
        return int(int4 * self.linear + int8 * self.output + embedding + rest)

    def cloud_bytes(self, dtype: str, stored: str) -> int:
        """Return the memory of the cloud's weights. int8 keeps the embedding as it is stored."""
        if dtype != "int8":
            return self.parameters * _BYTES[dtype]
        return self.linear + self.output + _BYTES[stored] * self.embedding + 4 * self.other

    def kv_bytes(self, dtype: str) -> int:
        """Return the memory of one token of a text in the cloud. int8 keeps keys and values in float32."""
        return self.kv_values * _BYTES.get(dtype, 4)


def sizes_of(config: Any, name: str) -> ModelSizes:
    """Count the weights of a model; raises ModelError for a configuration that transformers cannot build."""
    if not 0 < int(config.num_hidden_layers) <= _MOST_LAYERS:
        raise ModelError(f"{name}: num_hidden_layers: {config.num_hidden_layers} is not between 1 and {_MOST_LAYERS}")
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except (ImportError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{name}: config.json: {error}") from None
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = bool(config.tie_word_embeddings)
    linear = sum(
        weight.numel()
        for weight in model.parameters()
        if weight.ndim > 1 and weight is not output.weight and weight is not embedding.weight
    )
    vectors = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSizes(
        linear=linear,
        output=output.weight.numel(),
        embedding=embedding.weight.numel(),
        other=vectors,
        tied=tied,
        kv_values=2 * config.num_hidden_layers * heads * head_dim,
        rotary_values=context_tokens(config) * head_dim,
    )
