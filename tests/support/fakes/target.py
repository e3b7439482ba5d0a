"""A target model without a model: logits are a deterministic function of the whole token prefix, in pure NumPy."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import PromptTooLong
from chaperone_common.sampling import choose, softmax
from chaperone_common.types import Choice
from cloud_supervisor.model.ports import ForwardRequest, KvCache
from tests.support.waiting import PATIENCE_S

KV_BYTES_PER_TOKEN = 64
_ROOT = bytes(16)


class FakeCache:
    """Holds a digest of each prefix, as the keys and values of a real cache depend on all earlier tokens."""

    def __init__(self) -> None:
        self.digests: list[bytes] = []

    @property
    def length(self) -> int:
        return len(self.digests)

    def crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"crop: {length} is outside [0, {self.length}], the tokens held")
        del self.digests[length:]

    def select(self, length: int, indices: Sequence[int]) -> None:
        if [*indices] != sorted({*indices}.intersection(range(length, self.length))):
            raise ValueError(f"select: {[*indices]} are not ascending indices of [{length}, {self.length})")
        kept = [self.digests[index] for index in indices]
        self.crop(length)
        self.digests += kept

    def append(self, token_id: int, parent: int = -1) -> None:
        """Append a token after the token at index `parent`."""
        before = self.digests[parent] if self.digests else _ROOT
        self.digests.append(hashlib.blake2b(before + token_id.to_bytes(8, "little"), digest_size=16).digest())


class FakeTarget:
    """Obeys the contract of `TargetModel` in microseconds.

    Two models with one `seed` always agree. `disturbance` mixes in separate noise, so that a disturbed twin can play a
    draft model: among 64 ids the two agree on about 70% of the greedy choices at 0.25, 50% at 0.5.
    `before_forward` is called with every batch before it is fed: a test may block, count or raise there.
    An id in `unwritten` is never chosen. Without end-of-text ids, texts continue to their limit.
    """

    def __init__(
        self,
        vocabulary_size: int = 64,
        context_tokens: int = 512,
        *,
        seed: int = 0,
        disturbance: float = 0.0,
        unwritten: Sequence[int] = (),
        before_forward: Callable[[Sequence[ForwardRequest]], None] | None = None,
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._context_tokens = context_tokens
        self._seed = seed
        self._disturbance = disturbance
        self._unwritten = [*unwritten]
        self.before_forward = before_forward
        self.forwards = 0
        self.tokens_read = 0

    @property
    def vocabulary_size(self) -> int:
        return self._vocabulary_size

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def kv_bytes_per_token(self) -> int:
        return KV_BYTES_PER_TOKEN

    def new_cache(self) -> KvCache:
        return FakeCache()

    def forward(self, requests: Sequence[ForwardRequest]) -> list[list[Choice]]:
        for request in requests:
            self._check(request)
        if len({id(request.cache) for request in requests}) < len(requests):
            raise ValueError("cache: two requests with one cache")
        if self.before_forward is not None:
            self.before_forward(requests)
        return [self._feed(request) for request in requests]

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [vocab] after a prefix, computed without a cache: an oracle."""
        cache = FakeCache()
        for token_id in token_ids:
            cache.append(token_id)
        return self._logits(cache.digests[-1])

    def _check(self, request: ForwardRequest) -> None:
        tree = request.tree
        if not tree.token_ids or not 0 <= request.num_choices <= len(tree.token_ids):
            raise ValueError(f"num_choices: {request.num_choices} of {len(tree.token_ids)} tokens")
        if tree.start != request.cache.length:
            raise ValueError(f"start: {tree.start}, but the cache holds {request.cache.length} tokens")
        if tree.depth > self._context_tokens:
            raise PromptTooLong(f"the context holds {self._context_tokens} tokens")

    def _feed(self, request: ForwardRequest) -> list[Choice]:
        cache, tree = cast(FakeCache, request.cache), request.tree
        for token_id in tree.token_ids:
            cache.append(token_id)
        for parent, token_id in tree.branches:
            cache.append(token_id, parent)
        self.forwards += 1
        self.tokens_read += tree.size - tree.start
        first = tree.end - request.num_choices
        positions = [*range(first, tree.end), *tree.positions]
        return [
            choose(softmax(self._logits(digest), request.sampling.temperature), request.sampling, position + 1)
            for digest, position in zip(cache.digests[first:], positions, strict=True)
        ]

    def _logits(self, digest: bytes) -> NDArray[np.float32]:
        words = [self._seed, int.from_bytes(digest, "little")]
        logits = 2 * np.random.default_rng(words).standard_normal(self._vocabulary_size)
        if self._disturbance:
            own = np.random.default_rng([*words, 1]).standard_normal(self._vocabulary_size)
            logits += 2 * self._disturbance * own
        logits[self._unwritten] = -np.inf
        return logits.astype(np.float32)


def fake_target(pair: Path, before_forward: Callable[[Sequence[ForwardRequest]], None] | None = None) -> FakeTarget:
    """Return a large model with the pair's vocabulary and forwards of microseconds.

    It agrees with the draft only by chance.
    """
    manifest = load_manifest(pair / "cloud", role="cloud")
    return FakeTarget(manifest.vocabulary_size, manifest.context_tokens, before_forward=before_forward)


class Brake:
    """Blocks the model's thread in the first forward of a kind, until it is let go."""

    def __init__(self, applies: Callable[[ForwardRequest], bool] = lambda request: request.num_choices > 0) -> None:
        self._applies = applies
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, readings: Sequence[ForwardRequest]) -> None:
        if any(self._applies(reading) for reading in readings):
            self.reached.set()
            assert self.let_go.wait(PATIENCE_S), "the brake was never let go"
