"""The keys and values of a text that outlive its generation."""

from __future__ import annotations

from typing import Any, NamedTuple

from chaperone_common.conditioning import Encoding
from edge_client.model.onnx_cache import RowCache
from edge_client.model.portable_cache import PortableCache


class KeptText(NamedTuple):
    """The rows of a sequence that was closed, and the tokens of its text."""

    model: Any  # the `OnnxModel` that they belong to
    cache: RowCache | PortableCache
    token_ids: tuple[int, ...]
    encoding: Encoding | None = None  # of its first tokens, with which they were read


class PromptCache:
    """Keeps the text of the last sequence that used it. A later text that begins alike feeds only the rest.

    One sequence uses it at a time. A second one at the same time begins empty, and the one that is closed last is kept.
    """

    def __init__(self) -> None:
        self._kept: KeptText | None = None

    def take(self, model: Any) -> KeptText | None:
        """Return the kept text, and forget it; None if there is none, or if it belongs to another model."""
        kept, self._kept = self._kept, None
        return kept if kept is not None and kept.model is model else None

    def keep(self, text: KeptText) -> None:
        """Keep a text, in place of the one before."""
        self._kept = text

    def clear(self) -> None:
        """Forget the kept text."""
        self._kept = None
