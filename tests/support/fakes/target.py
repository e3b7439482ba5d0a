"""A target model without a model: logits are a deterministic function of the whole token prefix, in pure NumPy."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import PromptTooLong
from chaperone_common.logprobs import measure
from chaperone_common.sampling import choose, softmax
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.kv.slots import SlotCache, SlotPool
from cloud_supervisor.model.ports import ForwardRequest, Found, check_scoring, only_choices
from tests.support.models.beam_scores import scores_of
from tests.support.waiting import PATIENCE_S

KV_BYTES_PER_TOKEN = 64
_KV_TOKENS = 1 << 24  # no budget of a test is larger
_ROOT = bytes(16)


class FakePool(SlotPool):
    """A slot holds a digest of a prefix, as the keys and values of a token depend on all earlier tokens."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.digests: dict[int, bytes] = {}

    def append(self, cache: SlotCache, token_id: int, parent: int = -1) -> None:
        """Append a token to a cache, after its token at index `parent`."""
        before = self.digests[cache.slots[parent]] if cache.slots else _ROOT
        cache.extend(1)
        digest = hashlib.blake2b(before + token_id.to_bytes(8, "little"), digest_size=16).digest()
        self.digests[cache.slots[-1]] = digest


class FakeTarget:
    """Obeys the contract of `TargetModel` in microseconds.

    Two models with one `seed` always agree. `disturbance` mixes in separate noise, so that a disturbed twin can play a
    draft model: among 64 ids the two agree on about 70% of the greedy choices at 0.25, 50% at 0.5.
    `before_forward` is called with every batch before it is fed: a test may block, count or raise there.
    An id in `unwritten` is never chosen. Without end-of-text ids, texts continue to their limit.
    With `encoding_width` it encodes prompts, into rows of that many numbers, which depend on the whole text up to them.
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
        encoding_width: int = 0,
    ) -> None:
        self.encoding_width = encoding_width
        self.kv_pool = FakePool(_KV_TOKENS)
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
    def encodes(self) -> bool:
        return bool(self.encoding_width)

    @property
    def kv_bytes_per_token(self) -> int:
        return KV_BYTES_PER_TOKEN

    def step(self, requests: Sequence[ForwardRequest]) -> list[Found]:
        for request in requests:
            self._check(request)
        if len({id(request.cache) for request in requests}) < len(requests):
            raise ValueError("cache: two requests with one cache")
        if self.before_forward is not None:
            self.before_forward(requests)
        return [self._feed(request) for request in requests]

    def forward(self, requests: Sequence[ForwardRequest]) -> list[list[Choice]]:
        return only_choices(self.step(requests))

    def encoding(self, token_ids: Sequence[int], start: int = 0) -> Encoding:
        """Return the encoding of a text from `start` on, computed without a cache: an oracle."""
        twin = FakeTarget(encoding_width=self.encoding_width, context_tokens=len(token_ids))
        tree = TokenTree(tuple(token_ids))
        request = ForwardRequest(twin.kv_pool.new_cache(), tree, tree.end - start, SamplingParams(), encoded=True)
        [found] = twin.step([request])
        assert isinstance(found, Encoding)
        return found

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [vocab] after a prefix, computed without a cache: an oracle."""
        pool = FakePool(len(token_ids))
        cache = pool.new_cache()
        for token_id in token_ids:
            pool.append(cache, token_id)
        return self._logits(pool.digests[cache.slots[-1]])

    def _check(self, request: ForwardRequest) -> None:
        tree = request.tree
        if not tree.token_ids or not 0 <= request.num_choices <= len(tree.token_ids):
            raise ValueError(f"num_choices: {request.num_choices} of {len(tree.token_ids)} tokens")
        if request.encoded and (not self.encoding_width or tree.branches):
            raise ValueError("encoded: no projector, or branches")
        if request.scoring is not None:
            branches = len(tree.branches)
            check_scoring(
                request.scoring, request.num_choices, branches, self._vocabulary_size, encoded=request.encoded
            )
        if tree.start != request.cache.length:
            raise ValueError(f"start: {tree.start}, but the cache holds {request.cache.length} tokens")
        if request.cache.pool is not self.kv_pool:
            raise ValueError("cache: it is not of this model")
        if tree.depth > self._context_tokens:
            raise PromptTooLong(f"the context holds {self._context_tokens} tokens")

    def _feed(self, request: ForwardRequest) -> Found:
        cache, tree = request.cache, request.tree
        for token_id in tree.token_ids:
            self.kv_pool.append(cache, token_id)
        for parent, token_id in tree.branches:
            self.kv_pool.append(cache, token_id, parent)
        self.forwards += 1
        self.tokens_read += tree.size - tree.start
        first = tree.end - request.num_choices
        if request.encoded:
            rows = [self._row(self.kv_pool.digests[slot]) for slot in cache.slots[first : tree.end]]
            return Encoding.of(np.array(rows, np.float32).reshape(-1, self.encoding_width), first)
        positions = [*range(first, tree.end), *tree.positions]
        if request.scoring is not None:
            logits = [self._logits(self.kv_pool.digests[slot]) for slot in cache.slots[first:]]
            return scores_of(logits, request.sampling, request.scoring, positions)
        return [
            self._choice(request, index, self._logits(self.kv_pool.digests[slot]), position)
            for index, (slot, position) in enumerate(zip(cache.slots[first:], positions, strict=True))
        ]

    def _choice(self, request: ForwardRequest, index: int, logits: NDArray[np.float32], position: int) -> Choice:
        choice = choose(softmax(logits, request.sampling.temperature), request.sampling, position + 1)
        if request.top_logprobs is None or index < min(request.first_reported, request.num_choices):
            return choice
        return replace(choice, logprobs=measure(logits, choice.token_id, request.top_logprobs))

    def _row(self, digest: bytes) -> NDArray[np.float64]:
        return np.random.default_rng([int.from_bytes(digest, "little"), 2]).standard_normal(self.encoding_width)

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
