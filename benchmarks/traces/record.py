"""Record traces of the pair for the simulator: `python -m benchmarks record`.

The cloud's text comes from mode `exact`, which gives the cloud's own text and is several times faster than streaming.
(In bfloat16 a forward of several tokens rounds differently from one of a single token, and so may choose the other one
of two nearly equal tokens. Either text is the cloud's.) The device's model then reads that text token by token, as it
drafts, and its proposals are recorded.

The file grows trace by trace; run the same command again to continue an interrupted one.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.pair_models import models_of
from benchmarks.kit.processes import cloud_server
from benchmarks.kit.prompts import Prompt, read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.simulation.trace import ASTRAY_TOKENS, Trace, TracedDevice, TraceFile, load_traces, save_traces
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.errors import ConfigError
from chaperone_common.sampling import choose, noise, softmax
from chaperone_common.types import FinishReason, Mode, Proposal, SamplingParams
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings
from edge_client.generation import Generation
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.uncertainty import measure
from edge_client.ports import DraftModel, DraftStep

DIFFERENT = ("prompts_sha256", "pair", "models", "settings")  # traces of headers that differ in these are never mixed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="default")
    parser.add_argument("--prompts", type=Path, required=True, help="a prompt set: JSON lines of id, class and prompt")
    parser.add_argument("--traces", type=Path, required=True, help="the file to write or to continue: *.jsonl.gz")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=128)


def run(args: argparse.Namespace) -> dict[str, Any]:
    prompts = read_prompts(args.prompts)
    file = begun(args.traces, _header(args))
    done = {trace.id: trace for trace in file.traces}
    missing = [prompt for prompt in prompts if prompt.id not in done]
    if missing:
        args.traces.parent.mkdir(parents=True, exist_ok=True)
        with cloud_server(args.pair, arguments=("--threads", "1")) as (address, _):
            asyncio.run(_record(args, address, prompts, missing, file))
    file = load_traces(args.traces)
    return {"benchmark": "record", **file.header, "summary": _summary(file)}


async def _record(
    args: argparse.Namespace, address: str, prompts: Sequence[Prompt], missing: Sequence[Prompt], file: TraceFile
) -> None:
    sampling = SamplingParams(temperature=args.temperature, seed=args.seed)
    config = EdgeConfig(
        pair=args.pair,
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=1, allow_spinning=False),
    )
    found = {trace.id: trace for trace in file.traces}
    async with EdgeClient(config) as client:
        model = device_model(args.pair, client.manifest)
        try:
            for prompt in missing:
                written = await client.generate(
                    prompt.text,
                    mode=Mode.EXACT,
                    temperature=sampling.temperature,
                    seed=sampling.seed,
                    max_new_tokens=args.max_new_tokens,
                )
                reader = TracingReader(
                    model.new_sequence(), sampling, client.manifest.eos_token_ids, args.max_new_tokens
                )
                trace = await reader.read(prompt, written)
                found[prompt.id] = replace(trace, device=traced_device(trace, client))
                traces = tuple(found[prompt.id] for prompt in prompts if prompt.id in found)
                save_traces(args.traces, TraceFile(file.header, traces))
                print(f"{len(traces):3} of {len(prompts)}: {prompt.id}", flush=True)
        finally:
            model.close()


class TracingReader:
    """Feeds one text to the device's model and records the proposals."""

    def __init__(
        self, model: DraftModel, sampling: SamplingParams, eos_token_ids: Sequence[int], max_new_tokens: int
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._eos_token_ids = tuple(eos_token_ids)
        self._max_new_tokens = max_new_tokens
        self._step_ms: list[float] = []

    async def read(self, prompt: Prompt, written: Generation) -> Trace:
        """Follow the cloud's text, and go astray from it wherever the model would have."""
        proposals, ranks, astray = [], [], {}
        feed: Sequence[int] = written.prompt_token_ids
        for index, token_id in enumerate(written.token_ids):
            proposal, logits = await self._propose(feed)
            proposals.append(proposal)
            ranks.append(0 if proposal.token_id == token_id else self._rank(logits, token_id))
            if proposal.token_id != token_id:
                astray[index] = await self._go_astray(proposal, index)
            feed = (token_id,)
        self._model.close()
        return Trace(
            id=prompt.id,
            category=prompt.category,
            sampling=self._sampling,
            prompt_tokens=len(written.prompt_token_ids),
            max_new_tokens=self._max_new_tokens,
            eos_token_ids=self._eos_token_ids,
            token_ids=written.token_ids,
            ended=written.finish_reason is FinishReason.STOP,
            proposals=tuple(proposals),
            ranks=tuple(ranks),
            astray=astray,
            draft_ms=statistics.median(self._step_ms) if self._step_ms else 0.0,
        )

    async def _go_astray(self, proposal: Proposal, index: int) -> tuple[Proposal, ...]:
        """Return the model's continuation of its own token at `index`, as far as a device drafts; the text stays."""
        length = self._model.length
        proposals: list[Proposal] = []
        last = min(ASTRAY_TOKENS, self._max_new_tokens - index - 1)
        while len(proposals) < last and proposal.token_id not in self._eos_token_ids:
            proposal, _ = await self._propose((proposal.token_id,))
            proposals.append(proposal)
        self._model.rewind(length)
        return tuple(proposals)

    async def _propose(self, token_ids: Sequence[int]) -> tuple[Proposal, NDArray[np.float32]]:
        """Feed tokens; return the model's proposal after them, and the scores of its choice, [vocab]."""
        began = time.perf_counter()
        step: DraftStep = await self._model.step(token_ids)
        if len(token_ids) == 1:
            self._step_ms.append((time.perf_counter() - began) * 1e3)
        soft = softmax(step.logits, self._sampling.temperature)
        choice = choose(soft, self._sampling, step.position)
        return Proposal(choice.token_id, measure(soft, choice), choice.runner_up), soft.scaled

    def _rank(self, scaled: NDArray[np.float32], token_id: int) -> int:
        """Return the number of tokens that the model prefers; `scaled` are log-weights at its present position."""
        scores = scaled.astype(np.float64)
        if self._sampling.temperature > 0:
            scores -= np.log(-np.log(noise(self._sampling.seed, self._model.length, len(scores))))
        ahead = scores > scores[token_id]
        ahead[:token_id] |= scores[:token_id] == scores[token_id]
        return int(ahead.sum())


def traced_device(trace: Trace, client: EdgeClient) -> TracedDevice:
    """Return the model that measured the varentropies of a trace, with the texts of its tokens."""
    manifest, token_text = client.manifest, client.token_text
    texts = {token_id: token_text(token_id) for token_id in trace.own_token_ids}
    return TracedDevice(manifest.pair, manifest.model, manifest.digest, texts)


def device_model(pair: str, manifest: ModelManifest, *, threads: int = 1) -> OnnxModel:
    """Return the device's model of a pair."""
    return OnnxModel.load(
        pair_folder(pair, "edge"),
        threads=threads,
        allow_spinning=False,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
    )


def _header(args: argparse.Namespace) -> dict[str, Any]:
    manifest = load_manifest(pair_folder(args.pair, "edge"), role="edge")
    return {
        **provenance(),
        "prompts": args.prompts.name,
        "prompts_sha256": sha256_of(args.prompts),
        "pair": args.pair,
        "models": models_of(args.pair),
        "tokenizer_digest": manifest.tokenizer_digest,
        "vocabulary_size": manifest.vocabulary_size,
        "settings": {"temperature": args.temperature, "seed": args.seed, "max_new_tokens": args.max_new_tokens},
    }


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def begun(path: Path, header: dict[str, Any]) -> TraceFile:
    """Return the traces of an earlier run; raise ConfigError if it recorded something else."""
    if not path.exists():
        return TraceFile(header, ())
    file = load_traces(path)
    for name in DIFFERENT:
        if file.header.get(name) != header[name]:
            raise ConfigError(f"{path}: {name} are others than asked for; give another --traces, or remove the file")
    return file


def _summary(file: TraceFile) -> dict[str, Any]:
    """Return counts; the simulator evaluates the traces."""
    tokens = sum(len(trace.token_ids) for trace in file.traces)
    draft_ms = [trace.draft_ms for trace in file.traces]
    return {"traces": len(file.traces), "tokens": tokens, "draft_ms": round(statistics.median(draft_ms), 2)}
