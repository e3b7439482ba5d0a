"""llama.cpp on the same machine and the same model: `PYTHON benchmarks/engines/llama_row.py MODEL.gguf THREADS`.

It runs in an interpreter that has the package llama-cpp-python, which is built from source and therefore no dependency.
The weights are quantised again, to 8 bits (Q8_0), so that both engines read the same bytes. It prints one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import llama_cpp

TEXT_TOKENS = 200
SPANS = (1, 2, 4, 8, 16, 32)
ROUNDS = 7
SEED = 7


def main(source: str, threads: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        file = Path(folder, "q8.gguf")
        wanted = llama_cpp.llama_model_quantize_default_params()
        wanted.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
        wanted.allow_requantize = True
        wanted.nthread = threads
        if llama_cpp.llama_model_quantize(source.encode(), str(file).encode(), ctypes.byref(wanted)):
            raise SystemExit(f"{source}: llama.cpp cannot quantise it")
        size = file.stat().st_size
        model = llama_cpp.Llama(
            str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
        )
        dice = Random(SEED)
        text = [dice.randrange(model.n_vocab() - 300) for _ in range(TEXT_TOKENS + max(SPANS))]
        began = time.perf_counter()
        model.eval(text[:TEXT_TOKENS])
        prompt_ms = (time.perf_counter() - began) * 1e3
        times: dict[int, list[float]] = {tokens: [] for tokens in SPANS}
        for _ in range(ROUNDS):
            for tokens in SPANS:
                model.n_tokens = TEXT_TOKENS  # `eval` takes back what is after it
                began = time.perf_counter()
                model.eval(text[TEXT_TOKENS : TEXT_TOKENS + tokens])
                times[tokens].append((time.perf_counter() - began) * 1e3)
    medians = {tokens: statistics.median(taken) for tokens, taken in times.items()}
    return {
        "version": llama_cpp.__version__,
        "weights_mb": round(size / 1e6),
        "ms": {f"1x{tokens}": round(taken, 1) for tokens, taken in medians.items()},
        "prompt_ms": round(prompt_ms, 1),
        "tokens_per_s": round(1e3 / medians[1], 2),
        "eight_over_one": round(medians[8] / medians[1], 3),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
