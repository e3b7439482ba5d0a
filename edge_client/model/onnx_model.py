"""The device's small model on onnxruntime; the only file that imports it.

Forwards run in one worker thread per model. onnxruntime releases the interpreter lock, so the event loop never
waits for a forward. The worker's queue puts the steps of all sequences in order. `onnx_cache` has the forward itself,
with keys and values.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from chaperone_common.artefacts.manifest import KV_METADATA, KV_RETURNED, pull_remedy
from chaperone_common.errors import ConfigError, ModelCorrupt, ModelMissing
from chaperone_common.suggestion import nearest
from edge_client.model.onnx_cache import CHUNK_TOKENS, CONDITIONING, PAST, PRESENT, Graph, RowCache
from edge_client.model.onnx_sequence import OnnxSequence
from edge_client.model.portable_cache import PortableCache
from edge_client.model.prompt_cache import PromptCache

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
    conditioning = {CONDITIONING} & inputs.keys()
    expected = {"input_ids", "attention_mask", *positions, *conditioning, *kv_names}
    missing = {"logits", *(name.replace(PAST, PRESENT) for name in kv_names)} - outputs.keys()
    if not kv_names or missing or inputs.keys() != expected:
        raise ModelCorrupt(
            f"{path}: not a decoder with past_key_values that Chaperone has exported (inputs {', '.join(inputs)}; "
            f"outputs missing: {', '.join(sorted(missing)) or 'none'}); {pull_remedy(path.parent, 'edge')}"
        )
    cache, logits = inputs[kv_names[0]], outputs["logits"]
    _, heads, _, width = cache.shape
    encoding_width = inputs[CONDITIONING].shape[-1] if conditioning else 0
    sizes = (heads, width, logits.shape[-1], encoding_width)
    if not all(isinstance(size, int) for size in sizes) or cache.type not in _DTYPES or logits.type not in _DTYPES:
        raise ModelCorrupt(f"{path}: unknown sizes {sizes} or types {cache.type}, {logits.type}")
    kv_dtype, logits_dtype = _DTYPES[cache.type], _DTYPES[logits.type]
    return Graph(
        kv_names,
        heads,
        width,
        kv_dtype,
        logits.shape[-1],
        logits_dtype,
        returns_kv=returns_kv,
        takes_positions=bool(positions),
        encoding_width=encoding_width,
    )
