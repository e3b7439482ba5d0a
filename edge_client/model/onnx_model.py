"""The device's small model on onnxruntime; the only file that imports it.

Forwards run in one worker thread per model. onnxruntime releases the interpreter lock, so the event loop never
waits for a forward. The worker's queue puts the steps of all sequences in order. `onnx_cache` has the forward itself,
with keys and values.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaperone_common.artefacts.manifest import KV_METADATA, KV_RETURNED, pull_remedy
from chaperone_common.errors import ConfigError, InvalidRequest, ModelCorrupt, ModelMissing, PromptTooLong
from chaperone_common.suggestion import nearest
from edge_client.model.onnx_cache import CHUNK_TOKENS, PAST, PRESENT, Copy, Feed, Graph, RowCache
from edge_client.model.portable_cache import PortableCache
from edge_client.model.prompt_cache import KeptText, PromptCache
from edge_client.ports import TEXT_ROW, DraftStep

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is loaded
import onnxruntime

_DTYPES: dict[str, type[np.float32 | np.float16]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class OnnxModel:
    """One loaded graph, shared by any number of sequences."""

    def __init__(self, session: Any, graph: Graph, *, vocabulary_size: int, context_tokens: int) -> None:
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
        """Load `model.onnx` from a folder; raises ModelMissing, ModelCorrupt, or ConfigError for the providers.

        `allow_spinning` keeps the compute threads awake between kernels: fastest on idle cores, slow on shared ones.
        """
        check_providers(providers)
        path = Path(folder) / "model.onnx"
        if not path.is_file():
            raise ModelMissing(f"{path}: there is no such file; {pull_remedy(path.parent, 'edge')}")
        try:
            session = onnxruntime.InferenceSession(
                str(path), _session_options(threads, allow_spinning), providers=list(providers)
            )
        except Exception as error:  # onnxruntime's errors have no common base class
            raise ModelCorrupt(f"{path}: onnxruntime cannot load it: {error}") from error
        check_running(providers, session.get_providers())
        graph = _read_graph(session, path)
        if vocabulary_size > graph.logits_width:
            raise ModelCorrupt(
                f"{path}: it scores {graph.logits_width} tokens, fewer than the tokenizer's {vocabulary_size}"
            )
        return cls(session, graph, vocabulary_size=vocabulary_size, context_tokens=context_tokens)

    def new_sequence(self, *, branches: int = 0, prompt_cache: PromptCache | None = None) -> OnnxSequence:
        """Return an empty sequence. It allocates when it is first fed, and its branches when one is first forked.

        Each branch takes as much memory as the text: two branches triple it. With a `prompt_cache` the sequence begins
        with the text that is kept there, and leaves its own there when it is closed.
        """
        return OnnxSequence(self, branches=branches, prompt_cache=prompt_cache)

    def new_cache(self, branches: int) -> RowCache | PortableCache:
        """Return empty keys and values of a text and of branches, of the kind that the graph takes."""
        if self.graph.returns_kv:
            return PortableCache(self.session, self.graph)
        return RowCache(
            self.session, self.graph, self.chunk_logits, branches=branches, context_tokens=self.context_tokens
        )

    def close(self) -> None:
        """Wait for the forwards in flight and end the worker; idempotent."""
        self.worker.shutdown(wait=True)


@dataclass(slots=True)
class _Row:
    """The tokens of a row, and the length of the prefix that it shares with the text's row."""

    token_ids: list[int] = field(default_factory=list)
    shared: int = 0  # at most the text's length, and the row's own
    forked: bool = False

    @property
    def length(self) -> int:
        return len(self.token_ids)


class OnnxSequence:
    """One sequence of an `OnnxModel`: implements `DraftModel`.

    A step counts when it returns. One that is cancelled, or fails, leaves all lengths as they were: the worker may
    still finish it, but writes only after these lengths, and before any later step. Forking and adopting only note
    copies between rows, which the worker makes at the start of the next step.
    """

    def __init__(self, model: OnnxModel, *, branches: int = 0, prompt_cache: PromptCache | None = None) -> None:
        if branches < 0:
            raise ValueError(f"branches: {branches} is negative; 0 means the text alone")
        self._model = model
        self._prompt_cache = prompt_cache
        self._text = _Row(forked=True)
        self._cache: RowCache | PortableCache
        if prompt_cache is not None and (kept := prompt_cache.take(model)) is not None:
            self._cache = kept.cache
            model.worker.submit(kept.cache.set_branches, branches)
            self._text.token_ids = [*kept.token_ids]
        else:
            self._cache = model.new_cache(branches)
        self._rows = [self._text, *(_Row() for _ in range(branches))]
        self._copies: list[Copy] = []  # not known to be made
        self._stepping = False
        self._closed = False

    @property
    def length(self) -> int:
        return self._text.length

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._text.token_ids)

    @property
    def branches(self) -> int:
        return len(self._rows) - 1

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    def rewind(self, length: int) -> None:
        if self._stepping:
            raise RuntimeError("rewind: a step is under way; await or cancel it first")
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind: {length} is outside [0, {self.length}], the tokens fed")
        del self._text.token_ids[length:]
        self._share_at_most(length)

    def fork(self, branch: int, length: int) -> None:
        self._check_idle("fork")
        if not 1 <= branch <= self.branches:
            raise ValueError(f"fork: there is no branch {branch}; the sequence has {self.branches}, numbered from 1")
        if not 0 <= length <= self.length:
            raise ValueError(f"fork: {length} is outside [0, {self.length}], the text's tokens")
        row = self._rows[branch]
        self._copy(TEXT_ROW, branch, row.shared, length)
        self._rows[branch] = _Row(self._text.token_ids[:length], length, forked=True)

    def adopt(self, branch: int) -> None:
        self._check_idle("adopt")
        if branch == TEXT_ROW:
            raise ValueError(f"adopt: row {TEXT_ROW} is the text itself; branches are numbered from 1")
        self._check_forked("adopt", branch)
        row = self._rows[branch]
        self._copy(branch, TEXT_ROW, row.shared, row.length)
        self._share_at_most(row.shared)
        self._text.token_ids = [*row.token_ids]
        row.shared = row.length
        row.forked = False

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        return (await self._feed_each("step", {TEXT_ROW: tuple(token_ids)}))[TEXT_ROW]

    async def read(self, token_ids: Sequence[int]) -> AsyncIterator[DraftStep]:
        for first in range(0, len(token_ids), CHUNK_TOKENS):
            chunk, start = tuple(token_ids[first : first + CHUNK_TOKENS]), self.length
            scores = (await self._feed("read", {TEXT_ROW: chunk}, every=True))[TEXT_ROW]
            for position, row in enumerate(scores, start=start + 1):
                yield self._draft_step(row, position)

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, DraftStep]:
        return await self._feed_each("step_rows", {row: (token_id,) for row, token_id in token_ids.items()})

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._prompt_cache is not None and self.length:
            with suppress(RuntimeError):  # the model was closed
                # After all steps: one that was cancelled may still write after the text.
                self._model.worker.submit(self._cache.drop_branches, tuple(self._copies))
                self._prompt_cache.keep(KeptText(self._model, self._cache, self.token_ids))
        self._text.token_ids = []
        del self._cache  # a step in the worker keeps it alive until it ends

    async def _feed_each(self, action: str, token_ids: dict[int, tuple[int, ...]]) -> dict[int, DraftStep]:
        scores = await self._feed(action, token_ids)
        return {row: self._draft_step(of_row[-1], self._rows[row].length) for row, of_row in scores.items()}

    async def _feed(
        self, action: str, token_ids: dict[int, tuple[int, ...]], *, every: bool = False
    ) -> dict[int, NDArray[np.float32]]:
        self._check_idle(action)
        if not token_ids or not all(token_ids.values()):
            raise ValueError(f"{action}: no tokens; feed at least one")
        for row, fed in token_ids.items():
            self._check_forked(action, row)
            self._check_tokens(self._rows[row].length, fed)
        self._copies = [copy for copy in self._copies if not copy.made]
        feed = Feed(token_ids, tuple(row.length for row in self._rows), tuple(self._copies), every)
        self._stepping = True
        try:
            loop = asyncio.get_running_loop()
            scores = await loop.run_in_executor(self._model.worker, self._cache.feed, feed)
        except asyncio.CancelledError:
            feed.abandoned = True
            raise
        finally:
            self._stepping = False
        for row, fed in token_ids.items():
            self._rows[row].token_ids[feed.lengths[row] :] = fed
        return scores

    def _draft_step(self, scores: NDArray[np.float32], position: int) -> DraftStep:
        return DraftStep(scores[: self._model.vocabulary_size], position)

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        if start < end:
            self._copies.append(Copy(source, target, start, end))

    def _share_at_most(self, length: int) -> None:
        """Note that the text will differ from position `length` on."""
        for row in self._rows:
            row.shared = min(row.shared, length)

    def _check_idle(self, action: str) -> None:
        if self._closed or self._stepping:
            raise RuntimeError(f"{action}: the sequence is {'closed' if self._closed else 'in another step'}")

    def _check_forked(self, action: str, row: int) -> None:
        if not 0 <= row < len(self._rows) or not self._rows[row].forked:
            raise ValueError(f"{action}: branch {row} is not forked, or was adopted; fork it first")

    def _check_tokens(self, start: int, token_ids: tuple[int, ...]) -> None:
        needed = start + len(token_ids)
        if needed > self.context_tokens:
            raise PromptTooLong(f"prompt: {needed} tokens, but the device's model holds {self.context_tokens}")
        # The graph would read a negative id from the end of the embedding without complaint.
        if min(token_ids) < 0 or max(token_ids) >= self._model.vocabulary_size:
            raise InvalidRequest(f"prompt: a token id is outside [0, {self._model.vocabulary_size})")


def check_providers(providers: Sequence[str]) -> None:
    """Raise ConfigError for providers that this onnxruntime lacks; it would silently use another one."""
    available = onnxruntime.get_available_providers()
    if not providers:
        raise ConfigError(f"device.providers: there is none; name at least one of {', '.join(available)}")
    for index, provider in enumerate(providers):
        if provider not in available:
            raise ConfigError(
                f"device.providers: {provider!r} is not available here{nearest(provider, available)}; "
                f"available: {', '.join(available)}; others come with other builds of onnxruntime"
            )
        if provider in providers[:index]:
            raise ConfigError(f"device.providers: {provider!r} is named twice; remove one")


def check_running(wanted: Sequence[str], running: Sequence[str]) -> None:
    """Raise ConfigError for a provider that onnxruntime has, but could not start: it goes on with another one."""
    for provider in wanted:
        if provider not in running:
            raise ConfigError(
                f"device.providers: {provider!r} could not be started, and {', '.join(running)} would run instead; "
                "install what it needs, or leave it out"
            )


def _session_options(threads: int, allow_spinning: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would plan memory again for every length of the mask
    options.log_severity_level = 3  # errors; they are raised anyway
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
    return options


def _read_graph(session: Any, path: Path) -> Graph:
    """Read layers, heads and types from the graph's inputs and outputs; raises ModelCorrupt for another kind."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    kv_names = tuple(name for name in inputs if name.startswith(PAST))
    returns_kv = session.get_modelmeta().custom_metadata_map.get(KV_METADATA) == KV_RETURNED
    positions = {"position_ids"} & inputs.keys() if returns_kv else set[str]()
    expected = {"input_ids", "attention_mask", *positions, *kv_names}
    missing = {"logits", *(name.replace(PAST, PRESENT) for name in kv_names)} - outputs.keys()
    if not kv_names or missing or inputs.keys() != expected:
        raise ModelCorrupt(
            f"{path}: not a decoder with past_key_values that Chaperone has exported (inputs {', '.join(inputs)}; "
            f"outputs missing: {', '.join(sorted(missing)) or 'none'}); {pull_remedy(path.parent, 'edge')}"
        )
    cache, logits = inputs[kv_names[0]], outputs["logits"]
    _, heads, _, width = cache.shape
    sizes = (heads, width, logits.shape[-1])
    if not all(isinstance(size, int) for size in sizes) or cache.type not in _DTYPES or logits.type not in _DTYPES:
        raise ModelCorrupt(f"{path}: unknown sizes {sizes} or types {cache.type}, {logits.type}")
    kv_dtype, logits_dtype = _DTYPES[cache.type], _DTYPES[logits.type]
    return Graph(kv_names, heads, width, kv_dtype, logits.shape[-1], logits_dtype, returns_kv, bool(positions))
