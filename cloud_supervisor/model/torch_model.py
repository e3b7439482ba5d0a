"""The large model on torch and transformers; `batched_forward`, `devices` and `packed_linear` import them as well.

In int8 the logits have the same bits however the tokens were chunked, batched, cropped or rebuilt. In float32 the
choices are the same. In bfloat16 near ties may flip, because kernels round differently for different numbers of rows.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import: models come from the folder, never from a hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.beams.scoring import Scores
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import ConfigError, ModelCorrupt, ModelMissing, PromptTooLong
from chaperone_common.types import Choice
from cloud_supervisor.model import architectures, int8_linear
from cloud_supervisor.model.batched_forward import ATTENTION, EXACT_ATTENTION, View
from cloud_supervisor.model.devices import check_device
from cloud_supervisor.model.encoder import Encoder, watching
from cloud_supervisor.model.int8_linear import Int8Linear, quantise
from cloud_supervisor.model.logits.choosing import Chooser, Row, choices, coupled_choice, on_host
from cloud_supervisor.model.logits.scoring import scores
from cloud_supervisor.model.packed_linear import pack
from cloud_supervisor.model.ports import ForwardRequest, Found, check_scoring, only_choices
from cloud_supervisor.model.projector import ProjectorWeights
from cloud_supervisor.model.torch_kv import Sequences, TorchKv

KV_BUDGET_MIB = 2048.0

Dtype = Literal["float32", "bfloat16", "int8"]

# `int8` is made of whatever the checkpoint has.
_DTYPES: dict[Dtype, torch.dtype | Literal["auto"]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": "auto",
}


class TorchModel:
    """A causal language model of transformers as a `TargetModel`; use `load`.

    Its attention must be `ATTENTION`, which `load` sets, and `set_attn_implementation` of transformers.
    """

    def __init__(
        self,
        model: Any,
        *,
        vocabulary_size: int,
        context_tokens: int,
        kv_budget_mib: float = KV_BUDGET_MIB,
        chooser: Chooser = coupled_choice,
        projector: ProjectorWeights | None = None,
    ) -> None:
        """Serve a model of transformers, with keys and values of up to `kv_budget_mib`.

        Another `chooser` than `coupled_choice` breaks the promise of `exact`. It is for studies that compare the
        protocol's rule with others. A `projector` encodes prompts.
        """
        config = model.config
        if config.vocab_size < vocabulary_size:
            raise ConfigError(f"vocabulary_size: {vocabulary_size}, but the model knows {config.vocab_size} ids")
        if architectures.context_tokens(config) < context_tokens:
            most = architectures.context_tokens(config)
            raise ConfigError(
                f"context_tokens: {context_tokens}, but the model holds {most}; run "
                "`chaperone-cloud models pull --force`, or lower it"
            )
        self._model = model
        self._vocabulary_size = vocabulary_size
        self._context_tokens = context_tokens
        self._choose = chooser
        self._encoder = None if projector is None else Encoder(model, projector)
        # With a mask of four dimensions, models make none themselves; `attend` uses its own.
        self._ready_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device)
        self._exact = config._attn_implementation == EXACT_ATTENTION
        quantised = any(isinstance(layer, Int8Linear) for layer in model.modules())
        self._dtype = "int8" if quantised else str(model.dtype).removeprefix("torch.")
        kept = torch.float32 if quantised else model.dtype  # of keys and values
        self._kv_bytes_per_token = _kv_bytes_per_token(config, kept.itemsize)
        self.kv_pool = TorchKv(max(1, int(kv_budget_mib * 2**20) // self._kv_bytes_per_token))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        dtype: Dtype | Literal["auto"],
        threads: int | None,
        vocabulary_size: int,
        context_tokens: int,
        device: str = "cpu",
        kv_budget_mib: float = KV_BUDGET_MIB,
        chooser: Chooser = coupled_choice,
        projector: ProjectorWeights | None = None,
    ) -> Self:
        """Load a Hugging Face folder; `auto` is the `default_dtype`.

        `vocabulary_size` is the tokenizer's. The model's may be padded, and the ids beyond are never chosen. `threads`
        sets torch's number of threads for the whole process.
        Raises `ModelMissing`, `ModelCorrupt`, `ConfigError`, or `ModelError` for an unsupported architecture.
        """
        place = check_device(device)
        if dtype == "int8" and (place.type != "cpu" or not int8_linear.available()):
            raise ConfigError(f"dtype: int8 needs a processor of x86; take float32 or bfloat16 on {device}")
        if not (Path(folder) / "config.json").is_file():
            raise ModelMissing(f"{folder}: no model there; run `chaperone-cloud models pull`")
        with _loading(folder):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)  # nosec B615
        architectures.refuse_unsupported(config, "cloud", str(folder))
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = _default_dtype(config, place) if dtype == "auto" else dtype
        with _loading(folder):
            model: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615
                folder,
                dtype=_DTYPES[chosen],
                attn_implementation=EXACT_ATTENTION if chosen == "int8" else ATTENTION,
                local_files_only=True,
            )
        model = model.to(place).eval()
        if chosen == "int8":
            quantise(model)
        elif place.type == "cpu" and chosen == "float32":
            pack(model)
        return cls(
            model,
            vocabulary_size=vocabulary_size,
            context_tokens=context_tokens,
            kv_budget_mib=kv_budget_mib,
            chooser=chooser,
            projector=projector,
        )

    @classmethod
    def of_manifest(
        cls,
        folder: Path | str,
        manifest: ModelManifest,
        *,
        dtype: Dtype | Literal["auto"],
        threads: int | None,
        device: str = "cpu",
        kv_budget_mib: float = KV_BUDGET_MIB,
        chooser: Chooser = coupled_choice,
    ) -> Self:
        """Load a folder as its manifest describes it; raises as `load` does."""
        return cls.load(
            folder,
            dtype=dtype,
            threads=threads,
            vocabulary_size=manifest.vocabulary_size,
            context_tokens=manifest.context_tokens,
            device=device,
            kv_budget_mib=kv_budget_mib,
            chooser=chooser,
            projector=None if manifest.projector is None else ProjectorWeights.load(Path(folder), manifest.projector),
        )

    @property
    def dtype(self) -> str:
        """The data type of the weights and activations of linear layers, by torch's name."""
        return self._dtype

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def num_layers(self) -> int:
        """The number of layers, and of the last one in `hidden_states`."""
        return int(self._model.config.get_text_config().num_hidden_layers)

    @property
    def encodes(self) -> bool:
        return self._encoder is not None

    @property
    def kv_bytes_per_token(self) -> int:
        return self._kv_bytes_per_token

    def step(self, requests: Sequence[ForwardRequest]) -> list[Found]:
        """Run one forward for all requests; raises as `TargetModel.step` does."""
        for request in requests:
            self._check(request)
        if len({id(request.cache) for request in requests}) < len(requests):
            raise ValueError("cache: two requests with one cache; the later one must wait for the other")
        if not requests:
            return []
        logits, encodings = self._run(requests)
        encoded = iter(encodings)
        with torch.inference_mode():
            return [
                next(encoded) if request.encoded else found
                for request, found in zip(requests, self._found(requests, logits), strict=True)
            ]

    def _found(
        self, requests: Sequence[ForwardRequest], logits: torch.Tensor | None
    ) -> Iterator[list[Choice] | Scores]:
        """Yield the choices or scores of each request from the rows of all; no choices for one that wants neither."""
        counts = [0 if request.encoded else _count(request) for request in requests]
        of_request: list[torch.Tensor | None] = [None] * len(requests) if logits is None else [*logits.split(counts)]
        choosing = [
            (rows, request)
            for rows, request in zip(of_request, requests, strict=True)
            if rows is not None and len(rows) and request.scoring is None
        ]
        rows = [row for _, request in choosing for row in _rows_of(request)]
        of_all = [each for each, _ in choosing]
        joined = logits if len(of_all) == len(requests) or not of_all else torch.cat(of_all)
        chosen = choices(joined, rows, self._choose) if joined is not None and rows else iter(())
        for own, request, count in zip(of_request, requests, counts, strict=True):
            if request.scoring is not None and own is not None:
                positions = [row.position for row in _rows_of(request)]
                yield scores(own, request.sampling, request.scoring, positions)
            else:
                yield [*islice(chosen, count)]

    def forward(self, requests: Sequence[ForwardRequest]) -> list[list[Choice]]:
        """Run one forward for requests that want choices; raises as `TargetModel.forward` does."""
        return only_choices(self.step(requests))

    def _check(self, request: ForwardRequest) -> None:
        tree = request.tree
        if not tree.token_ids:
            raise ValueError("token_ids: a request needs at least one token")
        if not 0 <= request.num_choices <= len(tree.token_ids):
            raise ValueError(
                f"num_choices: {request.num_choices} is outside [0, {len(tree.token_ids)}], the tokens fed"
            )
        if request.encoded and (self._encoder is None or tree.branches):
            raise ValueError("encoded: this model has no projector, or the request has branches")
        if request.scoring is not None:
            branches = len(tree.branches)
            check_scoring(
                request.scoring, request.num_choices, branches, self._vocabulary_size, encoded=request.encoded
            )
        if tree.start != request.cache.length:
            raise ValueError(f"start: {tree.start}, but the cache holds {request.cache.length} tokens")
        if request.cache.pool is not self.kv_pool:
            raise ValueError("cache: it is not of this model's kv_pool")
        if tree.depth > self._context_tokens:
            raise PromptTooLong(f"{tree.depth} tokens; the context holds {self._context_tokens}")

    def hidden_states(
        self, request: ForwardRequest, layers: Sequence[int]
    ) -> tuple[list[Choice], list[NDArray[np.float32]]]:
        """Run one forward; return its choices, and the states [fed, width] float32 of each layer. Training needs them.

        Layers count as in `ProjectorWeights`.
        """
        fed = request.tree.size - request.tree.start
        with watching(self._model, layers, range(fed)) as states:
            (choices,) = self.forward([request])
        return choices, [states.of(layer).cpu().numpy() for layer in layers]

    def scores(self, request: ForwardRequest) -> NDArray[np.float32]:
        """Run one forward, extend the cache, and return the logits [choices + branches, vocab] in the choices' order.

        `forward` chooses from them. They are checked there, not here.
        """
        logits, _ = self._run([request])
        return np.empty((0, self._vocabulary_size), np.float32) if logits is None else on_host(logits)

    @torch.inference_mode()
    def _run(self, requests: Sequence[ForwardRequest]) -> tuple[torch.Tensor | None, list[Encoding]]:
        """Run one forward.

        Return the logits [choices and branches of all requests, vocab], or None without any, and the encodings.
        """
        token_ids: list[int] = []
        position_ids: list[int] = []
        wanted: list[int] = []  # rows of the forward whose logits are
        encoded: list[int] = []  # rows of the forward whose hidden states are
        spans: list[tuple[int, int]] = []  # of each encoding: its start, and its number of rows
        views = []
        for request in requests:
            views.append(View(request.tree, self._model.device))
            token_ids += [*request.tree.token_ids, *(token_id for _, token_id in request.tree.branches)]
            position_ids += views[-1].positions[request.tree.start :]
            count = _count(request)
            rows = range(len(token_ids) - count, len(token_ids))
            if request.encoded:
                encoded += rows
                spans.append((request.tree.end - count, count))
            else:
                wanted += rows
        caches = [request.cache for request in requests]
        inputs: dict[str, Any] = {
            "input_ids": self._tensor(token_ids),
            "position_ids": self._tensor(position_ids),
            "cache_position": self._tensor(position_ids)[0],
            "past_key_values": Sequences(caches, views, self._model.device, exact=self._exact),
            "attention_mask": self._ready_mask,
            "use_cache": True,
        }
        if self._encoder is None or not spans:
            return self._logits(inputs, wanted), []
        with self._encoder.watching(encoded) as states:
            logits = self._logits(inputs, wanted)
        return logits, self._encoder.encodings(states, spans)

    def _logits(self, inputs: dict[str, Any], wanted: Sequence[int]) -> torch.Tensor | None:
        """Call the model, and return the logits of these rows."""
        if not wanted:  # chunks of prompts: compute no logits
            self._model.base_model(**inputs)
            return None
        output = self._model(**inputs, logits_to_keep=torch.tensor(wanted, device=self._model.device))
        logits: torch.Tensor = output.logits[0, :, : self._vocabulary_size]
        return logits

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[*numbers]], device=self._model.device)  # [1, tokens] int64


def _count(request: ForwardRequest) -> int:
    """Return the number of rows whose choices or encodings a request wants."""
    return request.num_choices + len(request.tree.branches)


def _rows_of(request: ForwardRequest) -> Iterator[Row]:
    """Return the rows of a request: those along the chain, and one for each branch token."""
    tree, count = request.tree, request.num_choices
    next_tokens = [*tree.token_ids[1:], None][len(tree.token_ids) - count :]
    for index, drafted in enumerate(next_tokens):
        reported = request.top_logprobs if index >= request.first_reported else None
        yield Row(request.sampling, tree.end - count + index, drafted, reported)
    for position in tree.positions:
        yield Row(request.sampling, position, None, request.top_logprobs)


def default_dtype(folder: Path | str, device: str = "cpu") -> Dtype:
    """Return int8 for a processor of x86; elsewhere bfloat16 for a model that is stored so, else float32."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)  # nosec B615
    return _default_dtype(config, check_device(device))


def _default_dtype(config: Any, device: torch.device) -> Dtype:
    if device.type == "cpu" and int8_linear.available():
        return "int8"
    return "bfloat16" if config.dtype == torch.bfloat16 and device.type != "cpu" else "float32"


@contextmanager
def _loading(folder: Path | str) -> Iterator[None]:
    try:
        yield
    except ImportError:  # a package is missing, and the files may be fine
        raise
    except Exception as error:  # transformers, safetensors and json raise errors of many types
        raise ModelCorrupt(f"{folder}: transformers cannot load it: {error}") from error


def _kv_bytes_per_token(config: Any, itemsize: int) -> int:
    """Return the size of the keys and values of one token in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * itemsize)
