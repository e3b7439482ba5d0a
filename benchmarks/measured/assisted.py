"""Assisted generation of transformers: both models in one process, without a link; the co-located reference.

The process has all cores, which both models share. It uses the library's defaults: up to 20 drafted tokens, stopped
early where the draft is unsure. The large model is the pair's cloud folder. The small one is the pair's device model
before quantisation, from the weights that `chaperone-cloud models pull` fetched, because transformers cannot load the
ONNX export. The library draws sampled text with its own random numbers: it is as likely as the cloud's, but another
text.

The library has no warm start. So the clock starts with the first tokens, when both models hold the prompt's KV, and
these tokens are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.kit.processes import ServerFailed
from benchmarks.measured.runners import Measured, Request
from chaperone_common.artefacts.folders import chaperone_home, pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.artefacts.registry import PretrainedSource, TinySource, Weights, WheelsSource, load_registry
from chaperone_common.artefacts.sources import Origin
from chaperone_common.errors import ModelMissing
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason, PromptInput
from edge_client.text import ChatTemplate, Tokenizer

if TYPE_CHECKING:
    import torch

ASSISTED = "assisted"
_LINE_BYTES = 2**24
_UNMEASURED = ("prefill_ms", "edge_compute_ms", "cloud_compute_ms", "cloud_queue_ms", "energy_j")


def require_draft(pair: str) -> None:
    """Raise ModelMissing, with the remedy, if the draft's weights were not kept."""
    weights = load_registry().pair(pair).edge.weights
    if isinstance(weights, WheelsSource) and not _joined(weights).exists():
        raise ModelMissing(
            f"strategies: {ASSISTED!r} needs the device model's weights as they were fetched, and {_joined(weights)} "
            f"is not there; run `chaperone-cloud models pull --pair {pair} --force`, or leave {ASSISTED!r} out"
        )


class Assisted:
    """A `Runner` in a separate process, which the first generation starts."""

    def __init__(self, pair: str, dtype: str, cores: Sequence[int]) -> None:
        require_draft(pair)
        folder = pair_folder(pair, "edge")
        self._manifest = load_manifest(folder, role="edge")
        self._tokenizer = Tokenizer.load(folder, self._manifest)
        self._template = ChatTemplate.load(folder, self._tokenizer)
        self._command = ["-m", "benchmarks.measured.assisted", "--pair", pair, "--dtype", dtype]
        self._command += ["--cores", ",".join(map(str, cores))]
        self._process: asyncio.subprocess.Process | None = None

    def prepare(self, text: str) -> PromptInput:
        rendered = self._template.render([{"role": "user", "content": text}])
        return PromptInput(self._tokenizer.encode(rendered))

    async def generate(self, request: Request) -> Measured:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES,
                cwd=Path(__file__).parents[2],
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {
            "prompt_token_ids": request.prompt.token_ids,
            "temperature": request.temperature,
            "seed": request.seed,
            "max_new_tokens": request.max_new_tokens,
        }
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise ServerFailed(f"the process of {ASSISTED!r} ended with exit code {await self._process.wait()}")
        return self._measured(request, json.loads(line))

    async def aclose(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._process.wait()

    def _measured(self, request: Request, answer: dict[str, Any]) -> Measured:
        token_ids, commit_ms = answer["token_ids"], answer["commit_ms"]
        ended = token_ids[-1] in self._manifest.eos_token_ids
        stats = GenerationStats(
            prompt_tokens=len(request.prompt.token_ids),
            completion_tokens=len(token_ids),
            finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
            ttft_ms=commit_ms[0],
            ttft_committed_ms=commit_ms[0],
            total_ms=answer["total_ms"],
            decode_ms=answer["total_ms"] - commit_ms[0] if request.warm else None,
        )
        first = sum(at_ms == commit_ms[0] for at_ms in commit_ms) if request.warm else 0
        return Measured(tuple(token_ids), tuple(commit_ms), stats, untimed_tokens=first, unmeasured=_UNMEASURED)


# --- The process ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Arrivals:
    """A streamer of transformers that notes the time of each token; the first call brings the prompt."""

    began_s: float
    token_ids: list[int]
    commit_ms: list[float]
    _prompt: bool = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        now_ms = round((time.perf_counter() - self.began_s) * 1e3, 2)
        token_ids = value.flatten().tolist()
        self.token_ids += token_ids
        self.commit_ms += [now_ms] * len(token_ids)

    def end(self) -> None:
        pass


def _joined(weights: WheelsSource) -> Path:
    return chaperone_home() / "downloads" / f"{weights.sha256[:16]}.gguf"


def _draft_model(weights: Weights, dtype: str) -> Any:
    from cloud_supervisor.export import conversion
    from cloud_supervisor.export.tiny import build_tiny

    match weights:
        case WheelsSource():
            joined = _joined(weights)
            return conversion.load(Origin(str(joined.parent), gguf_file=joined.name), dtype, progress=False).model
        case PretrainedSource():
            return conversion.load(Origin(weights.name), dtype, progress=False).model
        case TinySource():
            return build_tiny(weights).model


def main() -> None:
    """Answer each line of JSON with another one until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measured.assisted")
    parser.add_argument("--pair", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--cores", required=True)
    args = parser.parse_args()
    cores = [int(core) for core in args.cores.split(",")]
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from cloud_supervisor.export import conversion

    torch.set_num_threads(len(cores))
    folder = pair_folder(args.pair, "cloud")
    manifest = load_manifest(folder, role="cloud")
    target = conversion.load(Origin(str(folder)), args.dtype, progress=False).model
    draft = _draft_model(load_registry().pair(args.pair).edge.weights, args.dtype)
    padding = list(range(manifest.vocabulary_size, target.config.vocab_size))
    for line in sys.stdin:
        asked = json.loads(line)
        prompt = torch.tensor([asked["prompt_token_ids"]])
        torch.manual_seed(asked["seed"])
        greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        sampled = {"do_sample": True, "temperature": asked["temperature"], "top_k": 0, "top_p": 1.0}
        arrivals = _Arrivals(time.perf_counter(), [], [])
        target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            assistant_model=draft,
            streamer=arrivals,
            max_new_tokens=asked["max_new_tokens"],
            eos_token_id=list(manifest.eos_token_ids),
            pad_token_id=manifest.eos_token_ids[0],
            suppress_tokens=padding or None,
            repetition_penalty=1.0,
            **(sampled if asked["temperature"] else greedy),
        )
        total_ms = round((time.perf_counter() - arrivals.began_s) * 1e3, 2)
        answer = {"token_ids": arrivals.token_ids, "commit_ms": arrivals.commit_ms, "total_ms": total_ms}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
