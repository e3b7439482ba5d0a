"""A large model that answers every chat with one given text, so that a program gets an answer it can use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chaperone_common.artefacts.manifest import load_manifest
from cloud_supervisor.kv.slots import SlotCache
from edge_client.text import Tokenizer
from tests.support.fakes.target import FakePool, FakeTarget

HEADER = "<|im_start|>assistant\n"  # with which the template of the tiny pair ends
_CERTAIN = 100.0  # a logit that no noise beats
_ID_BYTES = 4


class _WholePaths(FakePool):
    """A slot holds all token ids of its path, instead of a digest of them."""

    def append(self, cache: SlotCache, token_id: int, parent: int = -1) -> None:
        before = self.digests[cache.slots[parent]] if cache.slots else b""
        cache.extend(1)
        self.digests[cache.slots[-1]] = before + token_id.to_bytes(_ID_BYTES, "little")


class ScriptedTarget(FakeTarget):
    """Chooses the tokens of `answer` after the header of a reply, and then the end of the text."""

    def __init__(self, vocabulary_size: int, context_tokens: int, header: Sequence[int], answer: Sequence[int]) -> None:
        super().__init__(vocabulary_size, context_tokens)
        self.kv_pool = _WholePaths(1 << 24)
        self._header = _bytes_of(header)
        self._answer = _bytes_of(answer)

    def _logits(self, digest: bytes) -> NDArray[np.float32]:
        begun = digest.rfind(self._header)
        written = digest[begun + len(self._header) :] if begun >= 0 else b""
        rest = self._answer.removeprefix(written) if self._answer.startswith(written) else self._answer
        logits = np.zeros(self.vocabulary_size, np.float32)
        logits[int.from_bytes(rest[:_ID_BYTES], "little")] = _CERTAIN
        return logits


def scripted_target(pair: Path, answer: str) -> ScriptedTarget:
    """Return a large model with the pair's vocabulary that answers each chat with a text."""
    manifest = load_manifest(pair / "edge", role="edge")
    tokenizer = Tokenizer.load(pair / "edge", manifest)
    end = manifest.eos_token_ids[0]
    return ScriptedTarget(
        manifest.vocabulary_size,
        manifest.context_tokens,
        tokenizer.encode(HEADER),
        [*tokenizer.encode(answer), end],
    )


def _bytes_of(token_ids: Sequence[int]) -> bytes:
    return b"".join(token_id.to_bytes(_ID_BYTES, "little") for token_id in token_ids)
