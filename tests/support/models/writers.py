"""A writer of answers on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.artefacts.registry import TinySource
from cloud_supervisor.export.tiny import VOCABULARY, build_tiny
from cloud_supervisor.model.batched_forward import ATTENTION
from cloud_supervisor.model.torch_model import TorchModel
from training.answers.answer import Author
from training.answers.writing import Writer

TINY = Author("Tiny", "sha256:tiny")


def tiny_writer(source: TinySource, *, top: int, layers: Sequence[int]) -> Writer:
    """Return a writer that keeps the hidden states of some layers."""
    loaded = build_tiny(source)
    loaded.model.set_attn_implementation(ATTENTION)
    model = TorchModel(loaded.model, vocabulary_size=VOCABULARY, context_tokens=loaded.context_tokens, kv_budget_mib=64)
    return Writer(model, loaded.tokenizer, loaded.eos_token_ids, author=TINY, name="tiny", top=top, layers=layers)
