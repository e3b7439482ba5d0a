"""The ONNX draft model on the tiny pair, beyond the contract of `DraftModel`."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ModelCorrupt, ModelMissing, PromptTooLong
from edge_client.model.onnx_cache import CHUNK_TOKENS, FIRST_CAPACITY
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.onnx_sequence import OnnxSequence
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
    """Return whether logits are equal up to rounding: kernels round activations by batch shape, to 8 bits."""
    return bool(np.abs(left - right).max() < 0.1 * right.std())


async def logits_after(sequence: OnnxSequence, token_ids: list[int]) -> NDArray[np.float32]:
    return (await sequence.step(token_ids)).logits.copy()


def test_logits_cover_the_tokenizer_and_not_the_padding(model: OnnxModel, folder: Path) -> None:
    step = asyncio.run(model.new_sequence().step(tokens(1, 3)))
    assert step.logits.shape == (load_manifest(folder, role="edge").vocabulary_size,)
    assert step.position == 3


def test_growing_buffers_keep_their_content(model: OnnxModel) -> None:
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
    async def is_early() -> bool:
        prompt = tokens(6, context_tokens)
        whole = await seconds(model.new_sequence().step(prompt))
        cancelled, waiting = model.new_sequence(), model.new_sequence()
        reading = asyncio.create_task(cancelled.step(prompt))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        cancelled.close()
        waited = await seconds(waiting.step([1]))
        assert waiting.length == 1
        return waited < whole / 2

    async def seconds(step: Awaitable[DraftStep]) -> float:
        started = time.perf_counter()
        await step
        return time.perf_counter() - started

    # By the wall clock: another process may hold the wait up, but not three times.
    assert any(asyncio.run(is_early()) for _ in range(3))


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


# Branches


ROWS = range(4)  # the text and three branches; between the text and the third lies the first


def lengths_of(text_tokens: int) -> dict[int, int]:
    return {0: text_tokens, 1: text_tokens - 1, 2: text_tokens // 3, 3: 0}


@pytest.mark.parametrize("text_tokens", [20, FIRST_CAPACITY, FIRST_CAPACITY + 20])
def test_rows_of_one_forward_repeat_single_ones(model: OnnxModel, text_tokens: int) -> None:
    """Any rows of any lengths may run together, and the buffers may grow for them.

    The results are equal up to rounding: some processors sum several rows in another order.
    """

    async def scenario() -> None:
        prompt, lengths = tokens(8, text_tokens), lengths_of(text_tokens)
        text_alone, rows = model.new_sequence(), model.new_sequence(branches=3)
        await text_alone.step(prompt)
        await rows.step(prompt)
        alone = {}
        for row in sorted(lengths, key=lambda row: -lengths[row]):
            text_alone.rewind(lengths[row])
            alone[row] = await logits_after(text_alone, [row])
            text_alone.rewind(lengths[row])
        for count in (1, 2, 3, 4):
            for together in itertools.combinations(ROWS, count):
                rows.rewind(text_tokens)
                for branch in (1, 2, 3):
                    rows.fork(branch, lengths[branch])
                steps = await rows.step_rows({row: row for row in together})
                for row in together:
                    assert np.allclose(steps[row].logits, alone[row], atol=1e-3), (together, row)

    asyncio.run(scenario())


@pytest.mark.parametrize(("full", "others"), [(0, (1, 2)), (1, (0, 3))])
def test_a_full_row_between_two_others_is_left_alone(folder: Path, full: int, others: tuple[int, int]) -> None:
    """The full row has no room to run along, so the others take a forward each."""
    model = load(folder, context_tokens=12)

    async def scenario() -> None:
        prompt = tokens(9, 12)
        alone, rows = model.new_sequence(), model.new_sequence(branches=3)
        for sequence in (alone, rows):
            await sequence.step(prompt)
        lengths = dict.fromkeys(ROWS, 6) | {full: 12}
        for branch in (1, 2, 3):
            rows.fork(branch, lengths[branch])
        rows.rewind(lengths[0])
        steps = await rows.step_rows(dict.fromkeys(others, 5))
        together = [steps[row].logits.copy() for row in others]
        if full != 0:
            rows.adopt(full)
        rows.rewind(11)
        alone.rewind(11)
        assert np.array_equal(await logits_after(rows, prompt[11:]), await logits_after(alone, prompt[11:]))
        alone.rewind(6)
        expected = await logits_after(alone, [5])
        assert all(np.array_equal(logits, expected) for logits in together)

    asyncio.run(scenario())
    model.close()


def test_rows_keep_their_content_when_the_buffers_grow(model: OnnxModel) -> None:
    async def scenario() -> None:
        prompt, own = tokens(10, FIRST_CAPACITY - 1), tokens(11, 5)
        sequence = model.new_sequence(branches=2)
        await sequence.step(prompt)
        sequence.fork(1, 40)
        sequence.fork(2, FIRST_CAPACITY - 1)
        for token_id in own:
            steps = await sequence.step_rows({1: token_id, 2: token_id})
        for row, text in ((1, prompt[:40] + own), (2, prompt + own)):
            assert close_to(steps[row].logits, await logits_after(model.new_sequence(), text))
        assert close_to(await logits_after(sequence, own), await logits_after(model.new_sequence(), prompt + own))

    asyncio.run(scenario())


def test_a_text_that_fills_its_buffers_is_kept_while_its_branches_run(model: OnnxModel) -> None:
    async def scenario() -> None:
        prompt = tokens(12, FIRST_CAPACITY)
        alone, rows = model.new_sequence(), model.new_sequence(branches=2)
        for sequence in (alone, rows):
            await sequence.step(prompt)
        for branch in (1, 2):
            rows.fork(branch, 10)
        steps = await rows.step_rows({1: 5, 2: 6})
        for branch, token_id in ((1, 5), (2, 6)):
            assert close_to(steps[branch].logits, await logits_after(model.new_sequence(), [*prompt[:10], token_id]))
        assert np.array_equal(await logits_after(rows, [7]), await logits_after(alone, [7]))

    asyncio.run(scenario())


def test_branches_take_no_memory_until_one_is_forked(model: OnnxModel) -> None:
    def peak_bytes(branches: int, *, forked: bool) -> int:
        async def scenario() -> None:
            sequence = model.new_sequence(branches=branches)
            await sequence.step([1, 2, 3])
            if forked:
                sequence.fork(1, 2)
            await sequence.step([4])
            await sequence.step_rows({1: 4} if forked else {0: 4})

        tracemalloc.start()
        asyncio.run(scenario())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    graph = model.graph
    row_bytes = (
        len(graph.kv_names) * graph.kv_heads * FIRST_CAPACITY * graph.kv_width * np.dtype(graph.kv_dtype).itemsize
    )
    alone = peak_bytes(0, forked=False)
    assert row_bytes < alone < 2 * row_bytes
    assert peak_bytes(7, forked=False) < 2 * row_bytes
    assert peak_bytes(7, forked=True) > 8 * row_bytes


def test_logits_of_one_forward_do_not_share_memory(model: OnnxModel) -> None:
    async def scenario() -> None:
        sequence = model.new_sequence(branches=2)
        await sequence.step([1, 2, 3])
        sequence.fork(1, 2)
        sequence.fork(2, 1)
        steps = await sequence.step_rows({0: 4, 1: 5, 2: 6})
        for one, other in itertools.combinations(steps.values(), 2):
            assert not np.shares_memory(one.logits, other.logits)
            assert not np.array_equal(one.logits, other.logits)

    asyncio.run(scenario())


def test_a_negative_number_of_branches_is_refused(model: OnnxModel) -> None:
    with pytest.raises(ValueError, match="branches: -1"):
        model.new_sequence(branches=-1)


# Loading


def test_a_model_that_was_not_pulled_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="models pull"):
        OnnxModel.load(tmp_path, threads=1, allow_spinning=False, vocabulary_size=10, context_tokens=10)


def test_a_file_without_a_graph_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelCorrupt, match=r"model\.onnx"):
        OnnxModel.load(tmp_path, threads=1, allow_spinning=False, vocabulary_size=10, context_tokens=10)


def test_a_graph_with_another_vocabulary_is_reported(folder: Path) -> None:
    with pytest.raises(ModelCorrupt, match="1000000"):
        OnnxModel.load(folder, threads=1, allow_spinning=False, vocabulary_size=1_000_000, context_tokens=10)


def test_importing_the_model_switches_telemetry_off() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "import os, edge_client.model.onnx_model; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    repository = Path(__file__).resolve().parents[3]
    printed = subprocess.run([sys.executable, "-c", code], env=environment, cwd=repository, capture_output=True)
    assert printed.stdout.split() == [b"1"], printed.stderr
