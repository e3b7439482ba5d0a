"""The device's small model on onnxruntime; the only file that imports it.

The exported graph holds GroupQueryAttention nodes, which write new keys and values into the very buffers they read
the old ones from, as long as both are bound to the same memory. How many tokens count is the length of the attention
mask alone, so rewinding is setting a number, and what stands behind it in the buffers is never read.

Forwards run in one worker thread per model. onnxruntime lets go of the interpreter lock meanwhile, so the event loop
never waits for one, and the worker's queue puts the steps of all sequences in order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidRequest, ModelCorrupt, ModelError, ModelMissing, PromptTooLong
from edge_client.ports import DraftStep

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is loaded
import onnxruntime

# The graph gives logits for each position fed, 0.6 MB each for 152,000 ids. Longer chunks are hardly any faster
# (256 tokens of the default model: 1180 ms by 32, 1160 by 64, 1080 in one), cost memory and are later to cancel.
CHUNK_TOKENS = 32
FIRST_CAPACITY = 256

_PAST, _PRESENT = "past_key_values.", "present."
_DTYPES: dict[str, type[np.float32 | np.float16]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


@dataclass(frozen=True, slots=True)
class _Graph:
    """What the exported graph says about itself."""

    kv_names: tuple[str, ...]  # of the inputs, keys and values of all layers
    kv_heads: int
    kv_width: int
    kv_dtype: type[np.float32 | np.float16]
    logits_width: int  # at least the vocabulary, often padded
    logits_dtype: type[np.float32 | np.float16]


@dataclass(slots=True)
class _Feed:
    """One step on its way through the worker; an abandoned one stops before its next chunk."""

    token_ids: tuple[int, ...]
    start: int
    abandoned: bool = False


class OnnxModel:
    """One loaded graph, shared by any number of sequences."""

    def __init__(self, session: Any, graph: _Graph, *, vocabulary_size: int, context_tokens: int) -> None:
        self.session = session
        self.graph = graph
        self.vocabulary_size = vocabulary_size
        self.context_tokens = context_tokens
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chaperone-draft")
        # Shared, because there is one worker and only a chunk's last row outlives it.
        self.chunk_logits = np.empty((CHUNK_TOKENS, graph.logits_width), graph.logits_dtype)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        threads: int,
        allow_spinning: bool,
        vocabulary_size: int,
        context_tokens: int,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> OnnxModel:
        """Load `model.onnx` from a folder; raises ModelMissing or ModelCorrupt.

        `allow_spinning` keeps the compute threads awake between kernels: fastest on idle cores, slow on shared ones.
        """
        path = Path(folder) / "model.onnx"
        if not path.is_file():
            raise ModelMissing(f"{path}: there is no such file; fetch the model with `chaperone-cloud models pull`")
        try:
            session = onnxruntime.InferenceSession(
                str(path), _session_options(threads, allow_spinning), providers=list(providers)
            )
        except Exception as error:  # onnxruntime's errors have no common base class
            raise ModelCorrupt(f"{path}: onnxruntime cannot load it: {error}") from error
        graph = _read_graph(session, path)
        if vocabulary_size > graph.logits_width:
            raise ModelCorrupt(
                f"{path}: it scores {graph.logits_width} tokens, fewer than the tokenizer's {vocabulary_size}"
            )
        return cls(session, graph, vocabulary_size=vocabulary_size, context_tokens=context_tokens)

    def new_sequence(self) -> OnnxSequence:
        """An empty sequence; its memory is taken when it is first fed."""
        return OnnxSequence(self)

    def close(self) -> None:
        """Wait for the forwards in flight and end the worker; idempotent."""
        self.worker.shutdown(wait=True)


class OnnxSequence:
    """One sequence of an `OnnxModel`: implements `DraftModel`.

    A step counts when it returns. One that is cancelled, or fails, leaves `length` as it was: the worker may still
    finish it, but writes only behind `length`, and before any later step.
    """

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._cache = _Cache(model)
        self._length = 0
        self._stepping = False
        self._closed = False

    @property
    def length(self) -> int:
        return self._length

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    def rewind(self, length: int) -> None:
        if self._stepping:
            raise RuntimeError("rewind: a step is under way; await or cancel it first")
        if not 0 <= length <= self._length:
            raise ValueError(f"rewind: {length} is outside [0, {self._length}], the tokens fed")
        self._length = length

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        feed = _Feed(tuple(token_ids), self._length)
        self._check(feed)
        self._stepping = True
        try:
            loop = asyncio.get_running_loop()
            logits = await loop.run_in_executor(self._model.worker, self._cache.feed, feed)
        except asyncio.CancelledError:
            feed.abandoned = True
            raise
        finally:
            self._stepping = False
        self._length = feed.start + len(feed.token_ids)
        return DraftStep(logits, None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._length = 0
        del self._cache  # a step in the worker keeps it alive until it ends

    def _check(self, feed: _Feed) -> None:
        if self._closed or self._stepping:
            raise RuntimeError(f"step: the sequence is {'closed' if self._closed else 'in another step'}")
        if not feed.token_ids:
            raise ValueError("step: no tokens; feed at least one")
        needed = feed.start + len(feed.token_ids)
        if needed > self.context_tokens:
            raise PromptTooLong(f"prompt: {needed} tokens, but the device's model holds {self.context_tokens}")
        # The graph would read a negative id from the end of the embedding without complaint.
        if min(feed.token_ids) < 0 or max(feed.token_ids) >= self._model.vocabulary_size:
            raise InvalidRequest(f"prompt: a token id is outside [0, {self._model.vocabulary_size})")


class _Cache:
    """Keys, values and bound buffers of one sequence; after construction only the worker touches it."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._binding: Any = None
        self._kv: list[NDArray[Any]] = []  # each [1, heads, capacity, width]
        self._capacity = 0
        self._mask = np.ones((1, 0), np.int64)  # [1, capacity]
        self._ids = np.zeros((1, CHUNK_TOKENS), np.int64)
        self._logits = np.empty((1, model.graph.logits_width), model.graph.logits_dtype)
        self._bound_tokens = 0  # the chunk length that inputs and logits are bound for

    def feed(self, feed: _Feed) -> NDArray[np.float32]:
        """Read the tokens in chunks; returns the logits [vocab] after the last one."""
        total = len(feed.token_ids)
        self._reserve(feed.start + total)
        for offset in range(0, total, CHUNK_TOKENS):
            if feed.abandoned:
                break
            self._forward(feed.token_ids[offset : offset + CHUNK_TOKENS], feed.start + offset)
        logits = self._logits[0, : self._model.vocabulary_size]
        return logits.astype(np.float32, copy=False)

    def _forward(self, token_ids: tuple[int, ...], start: int) -> None:
        count = len(token_ids)
        self._ids[0, :count] = token_ids
        if count != self._bound_tokens:
            self._bind_tokens(count)
        self._binding.bind_cpu_input("attention_mask", self._mask[:, : start + count])
        try:
            self._model.session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise ModelError(f"the device's model failed on tokens {start} to {start + count - 1}: {error}") from error
        if count > 1:
            self._logits[0] = self._model.chunk_logits[count - 1]

    def _bind_tokens(self, count: int) -> None:
        """Bind inputs and logits of a chunk; a single token's logits go straight to where the caller reads them."""
        logits = self._logits if count == 1 else self._model.chunk_logits[:count]
        self._binding.bind_cpu_input("input_ids", self._ids[:, :count])
        self._binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(logits[np.newaxis]))
        self._bound_tokens = count

    def _reserve(self, tokens: int) -> None:
        """Grow the buffers to hold so many tokens, in doubling steps, and keep what they hold."""
        if tokens <= self._capacity:
            return
        capacity = max(FIRST_CAPACITY, self._capacity)
        while capacity < tokens:
            capacity *= 2
        capacity = min(capacity, self._model.context_tokens)
        graph = self._model.graph
        binding = self._model.session.io_binding()
        grown = []
        for index, name in enumerate(graph.kv_names):
            # Zeros, so that the system hands out each page only when it is first written.
            buffer = np.zeros((1, graph.kv_heads, capacity, graph.kv_width), graph.kv_dtype)
            if self._kv:
                buffer[:, :, : self._capacity] = self._kv[index]
            value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace(_PAST, _PRESENT), value)
            grown.append(buffer)
        self._binding, self._kv, self._capacity = binding, grown, capacity
        self._mask = np.ones((1, capacity), np.int64)
        self._bound_tokens = 0


def _session_options(threads: int, allow_spinning: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would plan and remember memory anew for every length of the mask
    options.log_severity_level = 3  # errors; they are raised anyway
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
    return options


def _read_graph(session: Any, path: Path) -> _Graph:
    """Read layers, heads and types from the graph's inputs and outputs; raises ModelCorrupt for another kind."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    kv_names = tuple(name for name in inputs if name.startswith(_PAST))
    expected = {"input_ids", "attention_mask", *kv_names}
    missing = {"logits", *(name.replace(_PAST, _PRESENT) for name in kv_names)} - outputs.keys()
    if not kv_names or missing or inputs.keys() != expected:
        raise ModelCorrupt(
            f"{path}: not a decoder with past_key_values and GroupQueryAttention (inputs {', '.join(inputs)}; "
            f"outputs missing: {', '.join(sorted(missing)) or 'none'}); convert it with `chaperone-cloud models pull`"
        )
    cache, logits = inputs[kv_names[0]], outputs["logits"]
    _, heads, _, width = cache.shape
    sizes = (heads, width, logits.shape[-1])
    if not all(isinstance(size, int) for size in sizes) or cache.type not in _DTYPES or logits.type not in _DTYPES:
        raise ModelCorrupt(f"{path}: unknown sizes {sizes} or types {cache.type}, {logits.type}")
    return _Graph(kv_names, heads, width, _DTYPES[cache.type], logits.shape[-1], _DTYPES[logits.type])
