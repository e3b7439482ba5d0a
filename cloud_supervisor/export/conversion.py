"""Conversion of weights: int4 ONNX for the device, safetensors for the cloud. A GGUF file is dequantised first."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault(
    "TRANSFORMERS_VERBOSITY", "error"
)  # loading a GGUF file gives a false warning about a Mistral regex

import contextlib
import importlib.metadata
import io
import json
import logging
import shutil
import subprocess  # nosec B404
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, TokenType, dequantize
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from chaperone_common.artefacts.registry import EdgeRecipe, PortableRecipe
from chaperone_common.artefacts.sources import Origin
from chaperone_common.errors import ModelError
from cloud_supervisor.export.failures import disk_problem, reason_in
from cloud_supervisor.export.graph_edits import add_conditioning, set_windows
from cloud_supervisor.export.tokenizer import strip_padding
from cloud_supervisor.model.architectures import context_tokens, layer_windows

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai")
_PORTABLE_PACKAGES = ("optimum", "optimum-onnx")
_COMPARED_ROWS = 4096
_SAME_MATRIX = 0.98  # least cosine of two roundings of one matrix; measured 0.99 with four bits on one side


@dataclass
class LoadedModel:
    """A causal language model of transformers, with its fast tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def context_tokens(self) -> int:
        return context_tokens(self.model.config)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-text ids of the model's generation configuration; empty if it names none."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            return ()
        return (int(ids),) if isinstance(ids, int) else tuple(int(token_id) for token_id in ids)


def read_config(origin: Origin) -> Any:
    """Read the configuration alone. Errors of the libraries pass through."""
    _be_quiet()
    return AutoConfig.from_pretrained(origin.name, **origin.options)  # nosec B615


def load(origin: Origin, dtype: str, *, progress: bool) -> LoadedModel:
    """Load weights and tokenizer. Errors of the libraries pass through.

    The weights of a GGUF file are dequantised, and its embedding is tied to its output matrix.
    """
    tokenizer = load_tokenizer(origin)
    with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(  # nosec B615
            origin.name, dtype=_DTYPES[dtype], **origin.options
        )
    loaded = LoadedModel(model.eval(), tokenizer)
    if origin.gguf_file is not None:
        _tie(loaded.model)
    return loaded


def load_tokenizer(origin: Origin) -> Any:
    """Load the tokenizer alone. Errors of the libraries pass through."""
    _be_quiet()
    tokenizer = AutoTokenizer.from_pretrained(origin.name, **origin.options)  # nosec B615
    if not tokenizer.is_fast:
        raise ModelError(f"{origin.name}: its tokenizer has no tokenizer.json, and cannot be turned into one")
    if origin.gguf_file is not None:
        add_control_tokens(tokenizer, Path(origin.name) / origin.gguf_file)
    return tokenizer


def message_ids(tokenizer: Any, message: str) -> list[int]:
    """Return the token ids of a user's message, with the chat template around it if the model has one."""
    if not tokenizer.chat_template:
        return list(tokenizer(message).input_ids)
    messages = [{"role": "user", "content": message}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _be_quiet() -> None:
    """Switch off the libraries' warnings and bars. A failure is reported once, by its exception."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def add_control_tokens(tokenizer: Any, path: Path) -> None:
    """Mark the control tokens of a GGUF file in the tokenizer.

    transformers marks only the few tokens that have a role in GGUF. Without the other marks, `<tool_call>` in a prompt
    would be spelled out, and `<|fim_pad|>` would be shown as text.
    """
    fields = GGUFReader(path).fields
    types = fields["tokenizer.ggml.token_type"].contents()
    texts = fields["tokenizer.ggml.tokens"].contents()
    for kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
        special = kind is TokenType.CONTROL
        found = [text for text, type_ in zip(texts, types, strict=True) if type_ == kind]
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in found], special)


def _tie(model: Any) -> None:
    """Use the output matrix as the embedding if both are roundings of one matrix.

    Small models are published with the two tied. A GGUF file holds them separately, and the output matrix has more bits
    per weight, so it is the better copy. Models whose matrices differ stay unchanged.
    """
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is embedding.weight:
        return
    rows = slice(0, _COMPARED_ROWS)
    likeness = torch.cosine_similarity(
        output.weight[rows].float().flatten(), embedding.weight[rows].float().flatten(), 0
    )
    if likeness > _SAME_MATRIX:
        embedding.weight = output.weight
        model.config.tie_word_embeddings = True
        model.tie_weights()


def has_one_embedding(path: Path) -> bool:
    """Return whether `_tie` would use the output matrix of a GGUF file as its embedding."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if "output.weight" not in tensors:
        return True
    output, embedding = (
        torch.from_numpy(dequantize(tensor.data[:_COMPARED_ROWS], tensor.tensor_type)).flatten()
        for tensor in (tensors["output.weight"], tensors["token_embd.weight"])
    )
    return bool(torch.cosine_similarity(output, embedding, 0) > _SAME_MATRIX)


def export_cloud(loaded: LoadedModel, folder: Path, eos_token_ids: tuple[int, ...]) -> None:
    """Write a folder for `from_pretrained`: safetensors, tokenizer, chat template."""
    config = loaded.model.generation_config
    loaded.model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=list(eos_token_ids),
    )
    loaded.model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # only their owner could read them, and a service runs as another user
    save_tokenizer(loaded, folder)


def export_edge(
    loaded: LoadedModel,
    folder: Path,
    recipe: EdgeRecipe | PortableRecipe,
    name: str,
    *,
    conditioned: bool = False,
) -> None:
    """Write `model.onnx` and `model.onnx.data` into `folder`; a `conditioned` graph takes encodings of prompts.

    Raises ModelError with the reason and `name`, the name of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "scratch"
    weights, built = scratch / "weights", scratch / "built"
    weights.mkdir(parents=True)
    loaded.model.save_pretrained(weights)
    save_tokenizer(loaded, weights)
    if isinstance(recipe, PortableRecipe):
        from cloud_supervisor.export.portable import export_portable  # optimum is in an extra of its own

        export_portable(weights, built, recipe)
    else:
        _build_with_genai(loaded, weights, built, scratch, recipe, name)
        set_windows(built / "model.onnx", layer_windows(loaded.model.config))
    if conditioned:
        add_conditioning(built / "model.onnx", loaded.model.get_input_embeddings().weight.shape[1])
    for file in ("model.onnx", "model.onnx.data"):
        (built / file).replace(folder / file)
    shutil.rmtree(scratch)


def _build_with_genai(
    loaded: LoadedModel, weights: Path, built: Path, scratch: Path, recipe: EdgeRecipe, name: str
) -> None:
    """Write the graph with the ONNX builder of onnxruntime-genai."""
    log = scratch / "builder.log"
    options = {
        "int4_accuracy_level": recipe.accuracy_level,
        "int4_block_size": recipe.block_size,
        "int4_algo_config": recipe.algorithm,
        # k_quant writes zero points. With "true", the shared embedding would be read without them.
        "int4_is_symmetric": "true" if recipe.algorithm.startswith("rtn") else "false",
        "shared_embeddings": "true" if loaded.model.config.tie_word_embeddings else "false",
        "hf_token": "false",
        "hf_remote": "false",  # else the builder would run code that is packaged with the weights
    }
    arguments = ["-m", str(weights), "-o", str(built), "-p", "int4", "-e", "cpu", "-c", str(scratch / "cache")]
    arguments += ["--extra_options", *(f"{name}={value}" for name, value in options.items())]
    status = run_builder(arguments, log)
    if status != 0 or not (built / "model.onnx").exists():
        said = log.read_text(encoding="utf-8", errors="replace")
        if (number := disk_problem(said)) is not None:
            raise OSError(number, os.strerror(number))
        raise ModelError(
            f"{name}: the ONNX builder failed on this {loaded.model.config.model_type} model: "
            f"{reason_in(said, status, scratch)}"
        )


def run_builder(arguments: Sequence[str], log: Path) -> int:
    """Run the ONNX builder, write its output to `log`, and return its exit status.

    It runs in a process of its own, because it prints a line per tensor and keeps its memory until the process ends.
    """
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *arguments]
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with log.open("wb") as output:
        done = subprocess.run(  # nosec B603
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode


def save_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and, if the model has a template, `chat_template.jinja`.

    Files that only repeat these are deleted. Of several named templates "default" stays: transformers uses it for
    prompts without tools.
    """
    loaded.tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    strip_padding(folder / "tokenizer.json")
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    decoder = config.get("added_tokens_decoder", {})
    kept = {key: value for key, value in decoder.items() if value["content"] != f"[PAD{key}]"}
    config_path.write_text(json.dumps(config | {"added_tokens_decoder": kept}, indent=2), encoding="utf-8")


def special_tokens(loaded: LoadedModel) -> dict[str, str | list[str]]:
    """Return the texts that transformers passes to a chat template: `bos_token` and all others, by name."""
    return {
        name: [str(text) for text in value] if isinstance(value, list | tuple) else str(value)
        for name, value in loaded.tokenizer.special_tokens_map.items()
    }


def package_versions(recipe: EdgeRecipe | PortableRecipe | None = None) -> dict[str, str]:
    """Return the versions of the packages that shape an artefact of this recipe."""
    packages = (*_PACKAGES, *(_PORTABLE_PACKAGES if isinstance(recipe, PortableRecipe) else ()))
    return {name: importlib.metadata.version(name) for name in packages}
