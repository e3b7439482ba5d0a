"""The ONNX draft model on the tiny pair: what the contract of `DraftModel` leaves to it."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config import load_manifest
from common.errors import ModelCorrupt, ModelMissing, PromptTooLong
from edge_client.onnx_model import CHUNK_TOKENS, FIRST_CAPACITY, OnnxModel, OnnxSequence
from edge_client.ports import DraftStep

USED_IDS = 60


@pytest.fixture(scope="module")
def folder(tiny_pair: Path) -> Path:
    return tiny_pair / "edge"


@pytest.fixture(scope="module")
def context_tokens(folder: Path) -> int:
    return load_manifest(folder, role="edge").context_tokens


@pytest.fixture(scope="module")
def model(folder: Path, context_tokens: int) -> Iterator[OnnxModel]:
    loaded = load(folder, context_tokens)
    yield loaded
    loaded.close()


def load(folder: Path, context_tokens: int) -> OnnxModel:
    vocabulary_size = load_manifest(folder, role="edge").vocabulary_size
    return OnnxModel.load(
        folder, threads=1, allow_spinning=False, vocabulary_size=vocabulary_size, context_tokens=context_tokens
    )


def tokens(seed: int, count: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(USED_IDS) for _ in range(count)]


def close_to(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    """Equal up to kernels, which round activations to 8 bits, and differently for other batch shapes."""
    return bool(np.abs(left - right).max() < 0.1 * right.std())


async def logits_after(sequence: OnnxSequence, token_ids: list[int]) -> NDArray[np.float32]:
    return (await sequence.step(token_ids)).logits.copy()


def test_logits_cover_the_tokenizer_and_not_the_padding(model: OnnxModel, folder: Path) -> None:
    step = asyncio.run(model.new_sequence().step(tokens(1, 3)))
    assert step.logits.shape == (load_manifest(folder, role="edge").vocabulary_size,)
    assert step.hidden is None


def test_buffers_grow_and_keep_what_they_hold(model: OnnxModel) -> None:
    async def scenario() -> None:
        prompt = tokens(2, FIRST_CAPACITY + 4)
        grown, at_once = model.new_sequence(), model.new_sequence()
        await grown.step(prompt[: FIRST_CAPACITY - 3])
        for token_id in prompt[FIRST_CAPACITY - 3 :]:
            last = await logits_after(grown, [token_id])
        assert close_to(last, await logits_after(at_once, prompt))
        grown.rewind(FIRST_CAPACITY - 1)
        again = await logits_after(grown, prompt[FIRST_CAPACITY - 1 :])
        assert close_to(again, last)

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 1])
def test_chunks_join_without_a_seam(model: OnnxModel, count: int) -> None:
    async def scenario() -> None:
        prompt = tokens(3, count)
        in_chunks, by_halves = model.new_sequence(), model.new_sequence()
        await by_halves.step(prompt[: count // 2])
        expected = await logits_after(by_halves, prompt[count // 2 :])
        assert close_to(await logits_after(in_chunks, prompt), expected)

    asyncio.run(scenario())


def test_a_rewind_repeats_the_same_bits(model: OnnxModel) -> None:
    async def scenario() -> None:
        sequence = model.new_sequence()
        await sequence.step(tokens(4, 20))
        first = await logits_after(sequence, [7])
        await sequence.step([8])
        sequence.rewind(20)
        assert np.array_equal(first, await logits_after(sequence, [7]))

    asyncio.run(scenario())


def test_the_event_loop_runs_on_while_a_prompt_is_read(model: OnnxModel, context_tokens: int) -> None:
    async def scenario() -> None:
        reading = asyncio.create_task(model.new_sequence().step(tokens(5, context_tokens)))
        ticks = 0
        while not reading.done():
            await asyncio.sleep(0)
            ticks += 1
        await reading
        assert ticks >= context_tokens // CHUNK_TOKENS

    asyncio.run(scenario())


def test_a_cancelled_prompt_stops_early_even_if_its_sequence_is_closed(model: OnnxModel, context_tokens: int) -> None:
    async def scenario() -> None:
        prompt = tokens(6, context_tokens)
        whole = await seconds(model.new_sequence().step(prompt))
        cancelled, waiting = model.new_sequence(), model.new_sequence()
        reading = asyncio.create_task(cancelled.step(prompt))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        cancelled.close()
        assert await seconds(waiting.step([1])) < whole / 2
        assert waiting.length == 1

    async def seconds(step: Awaitable[DraftStep]) -> float:
        started = time.perf_counter()
        await step
        return time.perf_counter() - started

    asyncio.run(scenario())


def test_a_sequence_stays_usable_in_another_event_loop(model: OnnxModel) -> None:
    sequence = model.new_sequence()
    asyncio.run(sequence.step([1, 2, 3]))
    asyncio.run(sequence.step([4]))
    assert sequence.length == 4


def test_the_whole_context_can_be_filled(model: OnnxModel, context_tokens: int) -> None:
    async def scenario() -> None:
        sequence = model.new_sequence()
        await sequence.step(tokens(7, context_tokens))
        with pytest.raises(PromptTooLong, match=str(context_tokens)):
            await sequence.step([1])

    asyncio.run(scenario())


def test_a_model_that_was_not_pulled(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="models pull"):
        OnnxModel.load(tmp_path, threads=1, allow_spinning=False, vocabulary_size=10, context_tokens=10)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelCorrupt, match=r"model\.onnx"):
        OnnxModel.load(tmp_path, threads=1, allow_spinning=False, vocabulary_size=10, context_tokens=10)


def test_a_graph_of_another_vocabulary(folder: Path) -> None:
    with pytest.raises(ModelCorrupt, match="1000000"):
        OnnxModel.load(folder, threads=1, allow_spinning=False, vocabulary_size=1_000_000, context_tokens=10)


def test_importing_the_model_switches_telemetry_off() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "import os, edge_client.onnx_model; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    repository = Path(__file__).resolve().parents[2]
    printed = subprocess.run([sys.executable, "-c", code], env=environment, cwd=repository, capture_output=True)
    assert printed.stdout.split() == [b"1"], printed.stderr
