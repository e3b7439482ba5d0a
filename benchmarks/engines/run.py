"""The cloud's data types against each other, and against llama.cpp: `python -m benchmarks engines`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from benchmarks.engines import agreement, llama_bench, speed
from benchmarks.kit.provenance import provenance
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from cloud_supervisor.model.torch_model import Dtype, TorchModel
from edge_client.text import ChatTemplate, Tokenizer

ANSWERS = Path("benchmarks/results/quality")
KINDS = {"humaneval": "humaneval-answers", "reasoning": "reasoning-answers", "prose": "prose-answers"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--dtypes", default="float32,int8", help="the first is what the others are compared with")
    parser.add_argument("--texts", type=int, default=12, help="of each kind")
    parser.add_argument("--tokens", type=int, default=96, help="of each text")
    parser.add_argument("--answers", type=Path, default=ANSWERS, help="a folder of answers of `quality`")
    parser.add_argument("--kinds", default=",".join(KINDS), help="suites whose answers are read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's program of this name")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; raises ConfigError if an option is wrong."""
    dtypes = args.dtypes.split(",")
    for dtype in dtypes:
        if dtype not in get_args(Dtype):
            raise ConfigError(f"--dtypes: {dtype!r} is none; choose from {', '.join(get_args(Dtype))}")
    for name in ("texts", "tokens", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: {getattr(args, name)}; at least 1")
    if (args.llama_bench is None) != (args.gguf is None):
        raise ConfigError("--llama-bench: it needs --gguf as well, and the other way round")
    measured = provenance()
    folder = pair_folder(args.pair, "cloud")
    manifest = load_manifest(folder, role="cloud")
    tokenizer = Tokenizer.load(folder, manifest)
    template = ChatTemplate.load(folder, tokenizer)
    texts: list[agreement.Text] = []
    for kind in args.kinds.split(","):
        if kind not in KINDS:
            raise ConfigError(f"--kinds: {kind!r} is none; choose from {', '.join(KINDS)}")
        file = args.answers / f"{KINDS[kind]}.jsonl.gz"
        texts += agreement.texts_of(file, kind, args.texts, args.tokens, tokenizer, template)
    models = {dtype: TorchModel.of_manifest(folder, manifest, dtype=dtype, threads=args.threads) for dtype in dtypes}
    engines = speed.measure(models, [*texts[0].prompt, *texts[0].answer])
    readings = {name: [agreement.read(model, text) for text in texts] for name, model in models.items()}
    reference = readings[dtypes[0]]
    for name in dtypes[1:]:
        engines[name]["against"] = dtypes[0]
        engines[name]["kinds"] = agreement.compared(texts, reference, readings[name])
    if args.llama_bench is not None:
        engines["llama.cpp"] = llama_bench.measure(
            args.llama_bench,
            args.gguf,
            threads=args.threads,
            held=speed.TEXT_TOKENS,
            spans=speed.SPANS,
            rounds=speed.ROUNDS,
        )
    settings = {
        "pair": args.pair,
        "dtypes": dtypes,
        "texts": args.texts,
        "tokens": args.tokens,
        "threads": args.threads,
        "text_tokens": speed.TEXT_TOKENS,
    }
    return {"benchmark": "engines", **measured, "settings": settings, "summary": engines}
