"""Costs of the device's path for one token, compared with onnxruntime alone: `python -m benchmarks device`.

Three loops run in turns of a few tokens each, so that a change of the machine's speed affects all of them alike:

bare      onnxruntime alone, called on this thread with the same buffers, and an argmax
greedy    OnnxSequence.step + softmax + choose + measure, temperature 0
sampled   the same at temperature 0.7 and top_p 0.95

A ratio is tokens/s over the bare loop's, the median of the rounds. Then a ticker on the event loop measures the longest
time that the loop stood still while a prompt was read and while tokens were drafted. `signals_share` is the time of a
token's signals, and of its calibrated risk if the pair has a gate, over that of the model's step: medians of single
tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.provenance import provenance
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.sampling import choose, softmax
from chaperone_common.session import Drafted
from chaperone_common.types import Proposal, SamplingParams
from edge_client.config import GateSettings
from edge_client.gate.gating import load_gate
from edge_client.gate.risk import CalibratedRisk
from edge_client.model.onnx_cache import CONDITIONING
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.onnx_sequence import OnnxSequence
from edge_client.model.uncertainty import measure
from edge_client.text import Tokenizer

TURN_TOKENS = 16
PREFILL_TOKENS = 256
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.7, top_p=0.95, seed=1)
TARGETS = {"greedy_ratio": 0.95, "sampled_ratio": 0.90, "loop_gap_ms": 20.0, "signals_share": 0.05}
PROMPT = (
    '"""A queue on two stacks."""\n\n\nclass Queue:\n    def __init__(self) -> None:\n        self.inbox = []\n'
    "        self.outbox = []\n\n    def push(self, item):\n"
)


class BareLoop:
    """The baseline: greedy decoding by onnxruntime's own calls."""

    def __init__(self, model: OnnxModel, prompt: Sequence[int], capacity: int) -> None:
        graph = model.graph
        self._session, self._vocabulary = model.session, model.vocabulary_size
        self._binding = model.session.io_binding()
        self._mask = np.ones((1, capacity), np.int64)
        self._input = np.zeros((1, 1), np.int64)
        self._logits = np.empty((1, 1, graph.logits_width), graph.logits_dtype)
        shape = (1, graph.kv_heads, capacity, graph.kv_width)
        self._kv = [np.zeros(shape, graph.kv_dtype) for _ in graph.kv_names]
        for name, buffer in zip(graph.kv_names, self._kv, strict=True):
            present = name.replace("past_key_values.", "present.")
            self._binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            self._binding.bind_output(present, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        output = self._logits
        self._binding.bind_output("logits", "cpu", 0, output.dtype, output.shape, output.ctypes.data)
        self._binding.bind_cpu_input("input_ids", self._input)
        if graph.encoding_width:
            self._no_encoding = graph.conditioning(None, [0], 1)
            self._binding.bind_cpu_input(CONDITIONING, self._no_encoding)
        self._length = 0
        for token_id in prompt:
            self._token = self._next(token_id)

    def _next(self, token_id: int) -> int:
        self._length += 1
        self._input[0, 0] = token_id
        self._binding.bind_cpu_input("attention_mask", self._mask[:, : self._length])
        self._session.run_with_iobinding(self._binding)
        return int(self._logits[0, 0, : self._vocabulary].argmax())

    async def turn(self, tokens: int) -> float:
        """Decode on and return seconds."""
        started = time.perf_counter()
        for _ in range(tokens):
            self._token = self._next(self._token)
        return time.perf_counter() - started


class ChaperoneLoop:
    """The path that the engine takes for each token."""

    def __init__(self, sequence: OnnxSequence, params: SamplingParams) -> None:
        self._sequence = sequence
        self._params = params
        self._token = 0

    async def prefill(self, prompt: Sequence[int]) -> None:
        self._token = self._choose((await self._sequence.step(prompt)).logits)

    def _choose(self, logits: NDArray[np.float32]) -> int:
        soft = softmax(logits, self._params.temperature)
        choice = choose(soft, self._params, self._sequence.length)
        measure(soft, choice)
        return choice.token_id

    async def turn(self, tokens: int) -> float:
        """Decode on and return seconds."""
        started = time.perf_counter()
        for _ in range(tokens):
            self._token = self._choose((await self._sequence.step((self._token,))).logits)
        return time.perf_counter() - started


async def decode_speeds(model: OnnxModel, prompt: Sequence[int], rounds: int, tokens: int) -> dict[str, Any]:
    """Interleave the three loops; return tokens/s (medians of the rounds) and ratios to the bare loop."""
    per_round: dict[str, list[float]] = {"bare": [], "greedy": [], "sampled": []}
    for number in range(rounds + 1):
        sequences = [model.new_sequence(), model.new_sequence()]
        greedy, sampled = ChaperoneLoop(sequences[0], GREEDY), ChaperoneLoop(sequences[1], SAMPLED)
        await greedy.prefill(prompt)
        await sampled.prefill(prompt)
        turns: dict[str, Callable[[int], Coroutine[Any, Any, float]]] = {
            "bare": BareLoop(model, prompt, len(prompt) + tokens + TURN_TOKENS).turn,
            "greedy": greedy.turn,
            "sampled": sampled.turn,
        }
        seconds = dict.fromkeys(turns, 0.0)
        for _ in range(max(1, tokens // TURN_TOKENS)):
            for name, turn in turns.items():
                seconds[name] += await turn(TURN_TOKENS)
        for sequence in sequences:
            sequence.close()
        if number > 0:  # the first round warms up
            for name, spent in seconds.items():
                per_round[name].append(max(1, tokens // TURN_TOKENS) * TURN_TOKENS / spent)
    speeds = {f"{name}_tokens_per_s": statistics.median(values) for name, values in per_round.items()}
    return speeds | {f"{name}_ratio": _ratio(per_round[name], per_round["bare"]) for name in ("greedy", "sampled")}


async def loop_gaps(model: OnnxModel, prompt: Sequence[int], tokens: int) -> dict[str, float]:
    """Return the longest time between two ticks of an otherwise idle event loop, in ms."""
    long_prompt = (list(prompt) * (1 + PREFILL_TOKENS // len(prompt)))[:PREFILL_TOKENS]
    sequence = model.new_sequence()
    loop = ChaperoneLoop(sequence, SAMPLED)
    started = time.perf_counter()
    prefill_gap_ms = await _longest_gap_ms(loop.prefill(long_prompt))
    prefill_ms = (time.perf_counter() - started) * 1000
    decode_gap_ms = await _longest_gap_ms(loop.turn(tokens))
    sequence.close()
    return {
        "prefill_tokens_per_s": PREFILL_TOKENS / prefill_ms * 1000,
        "prefill_loop_gap_ms": prefill_gap_ms,
        "decode_loop_gap_ms": decode_gap_ms,
    }


async def signals_share(
    model: OnnxModel, prompt: Sequence[int], tokens: int, risk: CalibratedRisk | None
) -> dict[str, float]:
    """Return the times of a draft step, its signals and its risk; medians in ms."""
    sequence = model.new_sequence()
    token_ids: Sequence[int] = prompt
    spent: tuple[list[float], ...] = ([], [], [])  # of the step, its signals and its risk
    for position in range(len(prompt), len(prompt) + tokens):
        times = [time.perf_counter()]
        step = await sequence.step(token_ids)
        times.append(time.perf_counter())
        soft = softmax(step.logits, 0.0)
        choice = choose(soft, GREEDY, position)
        before = time.perf_counter()
        proposal = Proposal(choice.token_id, measure(soft, choice), choice.runner_up)
        times.append(times[-1] + time.perf_counter() - before)
        before = time.perf_counter()
        if risk is not None:
            proposal = risk.with_risk(proposal)
            risk.follow(Drafted(position, proposal.token_id, proposal.signal))
        times.append(times[-1] + time.perf_counter() - before)
        for times_ms, (begin, end) in zip(spent, pairwise(times), strict=True):
            times_ms.append((end - begin) * 1e3)
        token_ids = (proposal.token_id,)
    sequence.close()
    step_ms, signals_ms, risk_ms = map(statistics.median, spent)
    share = (signals_ms + risk_ms) / step_ms
    return {"step_ms": step_ms, "signals_ms": signals_ms, "risk_ms": risk_ms, "signals_share": share}


async def _longest_gap_ms(work: Coroutine[Any, Any, Any]) -> float:
    task = asyncio.ensure_future(work)
    longest, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await task
    return longest * 1000


def _ratio(values: Sequence[float], bare: Sequence[float]) -> float:
    return statistics.median(value / yardstick for value, yardstick in zip(values, bare, strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks device`."""
    parser.add_argument("--pair", default="default", help="model pair whose device model is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spinning", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="tokens a round and loop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the numbers, the settings and the targets."""
    measured = provenance()
    folder = pair_folder(args.pair, "edge")
    manifest = load_manifest(folder, role="edge")
    model = OnnxModel.load(
        folder,
        threads=args.threads,
        allow_spinning=args.spinning,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
    )
    tokenizer = Tokenizer.load(folder, manifest)
    prompt = tokenizer.encode(PROMPT)
    gate = load_gate(GateSettings(), manifest)
    read = cache(lambda token_id: tokenizer.decode([token_id]))
    risk = CalibratedRisk(gate, read, len(prompt)) if gate is not None else None
    try:
        speeds = asyncio.run(decode_speeds(model, prompt, args.rounds, args.tokens))
        gaps = asyncio.run(loop_gaps(model, prompt, args.tokens))
        signals = asyncio.run(signals_share(model, prompt, args.tokens, risk))
    finally:
        model.close()
    settings = {
        "pair": args.pair,
        "threads": args.threads,
        "spinning": args.spinning,
        "rounds": args.rounds,
        "tokens": args.tokens,
        "gate": gate is not None,
    }
    summary = {name: round(value, 3) for name, value in (speeds | gaps | signals).items()}
    return {"benchmark": "device", **measured, "settings": settings, "targets": TARGETS, "summary": summary}
