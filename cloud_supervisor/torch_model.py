"""The large model by torch and transformers; the service's only file that imports them.

In float32 the choices do not depend on how the tokens were chunked, cropped or rebuilt; in bfloat16 near ties
may flip, because kernels round differently for different numbers of rows.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import: models come from the folder, never from a hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from cloud_supervisor.ports import KvCache, Reading
from common.errors import ConfigError, ModelCorrupt, ModelMissing, PromptTooLong
from common.sampling import choose, softmax
from common.types import Choice, SamplingParams

Dtype = Literal["float32", "bfloat16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchCache:
    """Keys and values of one sequence, layer by layer."""

    def __init__(self) -> None:
        self.layers: Any = DynamicCache()

    @property
    def length(self) -> int:
        return int(self.layers.get_seq_length())

    @property
    def size_bytes(self) -> int:
        """Memory held; what `crop` cut off is only given back by the next reading."""
        tensors = (
            tensor for layer in self.layers.layers if layer.is_initialized for tensor in (layer.keys, layer.values)
        )
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"crop: {length} is outside [0, {self.length}], the tokens held")
        if length == 0:
            self.layers = DynamicCache()
        elif length < self.length:
            self.layers.crop(length)


class TorchModel:
    """A causal language model of transformers as a `TargetModel`; use `load`."""

    def __init__(self, model: Any, *, vocabulary_size: int, context_tokens: int) -> None:
        config = model.config
        if config.vocab_size < vocabulary_size:
            raise ConfigError(f"vocabulary_size: {vocabulary_size}, but the model knows {config.vocab_size} ids")
        if config.max_position_embeddings < context_tokens:
            raise ConfigError(
                f"context_tokens: {context_tokens}, but the model holds {config.max_position_embeddings}; lower it"
            )
        self._model = model
        self._vocabulary_size = vocabulary_size
        self._context_tokens = context_tokens
        self._kv_bytes_per_token = _kv_bytes_per_token(config, model.dtype.itemsize)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        dtype: Dtype,
        threads: int | None,
        vocabulary_size: int,
        context_tokens: int,
        device: str = "cpu",
    ) -> TorchModel:
        """Load a Hugging Face folder.

        `vocabulary_size` is the tokenizer's (the model's may be padded; the ids beyond are never chosen), `threads`
        sets torch's number for the whole process. Raises `ModelMissing`, `ModelCorrupt` or `ConfigError`.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ModelMissing(f"{folder}: no model there; run `chaperone-cloud models pull`")
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=_DTYPES[dtype], attn_implementation="sdpa", local_files_only=True
            )
        except ImportError:  # a package is missing, and the files may be fine
            raise
        except Exception as error:  # transformers, safetensors and json each raise their own kinds
            raise ModelCorrupt(f"{folder}: transformers cannot load it: {error}") from error
        return cls(model.to(device).eval(), vocabulary_size=vocabulary_size, context_tokens=context_tokens)

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def kv_bytes_per_token(self) -> int:
        return self._kv_bytes_per_token

    def new_cache(self) -> KvCache:
        return TorchCache()

    def read(self, readings: Sequence[Reading]) -> list[list[Choice]]:
        """One forward for each reading, in order. All are checked before the first one runs.

        Raises `ValueError` for a reading that asks for nothing sensible and `PromptTooLong` beyond the context.
        """
        for reading in readings:
            self._check(reading)
        return [self._read_one(reading) for reading in readings]

    def _check(self, reading: Reading) -> None:
        tokens = len(reading.token_ids)
        if not tokens:
            raise ValueError("token_ids: a reading needs at least one token")
        if not 0 <= reading.choices <= tokens:
            raise ValueError(f"choices: {reading.choices} is outside [0, {tokens}], the tokens read")
        if reading.cache.length + tokens > self._context_tokens:
            raise PromptTooLong(f"{reading.cache.length + tokens} tokens; the context holds {self._context_tokens}")

    @torch.inference_mode()
    def _read_one(self, reading: Reading) -> list[Choice]:
        cache = cast(TorchCache, reading.cache)
        token_ids = torch.tensor([list(reading.token_ids)], device=self._model.device)  # [1, tokens] int64
        if reading.choices == 0:  # a chunk of a prompt: no logits at all
            self._model.base_model(input_ids=token_ids, past_key_values=cache.layers, use_cache=True)
            return []
        output = self._model(
            input_ids=token_ids, past_key_values=cache.layers, use_cache=True, logits_to_keep=reading.choices
        )
        logits = output.logits[0, :, : self._vocabulary_size].float().cpu().numpy()  # [choices, vocab] float32
        return _choices(logits, reading.sampling, first_position=cache.length - reading.choices + 1)


def _choices(logits: NDArray[np.float32], sampling: SamplingParams, *, first_position: int) -> list[Choice]:
    """Choose from logits [choices, vocab]; a row's noise is that of the position its token will have."""
    return [
        choose(softmax(row, sampling.temperature), sampling, first_position + index) for index, row in enumerate(logits)
    ]


def _kv_bytes_per_token(config: Any, itemsize: int) -> int:
    """Keys and values of every layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * itemsize)
