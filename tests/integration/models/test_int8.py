"""The engine int8: sums of integers, so that a row's bits do not depend on the rows that are read with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from transformers.activations import ACT2FN

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.store import KvStore
from cloud_supervisor.model import int8_linear
from cloud_supervisor.model.int8_linear import Int8Linear, Rotation, RowActivation
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.scheduling.runner import ModelRunner
from tests.support.cloud.forward import feeding, logits_of

SESSIONS = 200
PROMPT_TOKENS = 9
WRITTEN = 10

pytestmark = pytest.mark.skipif(not int8_linear.available(), reason="this build of torch has no FBGEMM")


def sampling_of(session: int) -> SamplingParams:
    """Return greedy and sampled parameters in turn."""
    return SamplingParams(temperature=(0.0, 0.7, 1.0)[session % 3], top_p=(1.0, 0.9)[session % 2], seed=session)


@pytest.fixture(scope="module")
def model(tiny_pair: Path) -> TorchModel:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    return TorchModel.of_manifest(tiny_pair / "cloud", manifest, dtype="int8", threads=1)


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """Yield a function that sets torch's number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# The layer


def test_a_layer_rotates_rounds_and_sums_as_it_is_documented() -> None:
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(40, 6)  # blocks of 8 channels
    linear.weight.data = torch.randn(6, 40, generator=generator)
    rows = torch.randn(3, 40, generator=generator) * torch.tensor([[1e-3], [1.0], [500.0]])
    mixing = torch.block_diag(*[torch.tensor(hadamard(8), dtype=torch.float64)] * 5)
    fine = rows.double().abs().amax(dim=1, keepdim=True) / 2**15
    turned, weight = (rows / fine).round() @ mixing, linear.weight.data.double() @ mixing / 8
    row_steps, weight_steps = (each.abs().amax(dim=1, keepdim=True) / 90 for each in (turned, weight))
    sums = (turned / row_steps).round() @ (weight / weight_steps).round().T
    expected = sums * row_steps * fine * weight_steps.T + linear.bias.data
    found = Int8Linear(linear, Rotation())(rows)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-9)


def test_the_largest_values_do_not_overflow() -> None:
    """Processors without VNNI add pairs of products in 16 bits."""
    linear = torch.nn.Linear(8960, 4, bias=False)
    first_of_block = (torch.arange(8960) % 128 == 0).float()  # its rotation has the same value in all places
    linear.weight.data = -first_of_block.expand(4, -1)
    rows = torch.stack([3 * first_of_block, -3 * first_of_block, 0 * first_of_block])
    found = Int8Linear(linear, Rotation())(rows)
    assert torch.allclose(found, torch.tensor([[-210.0], [210.0], [0.0]]).expand(3, 4))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [2, 3, 8, 17, 64, 257])
def test_a_row_is_the_same_alone_and_with_others(rows: int, threads: int, torch_threads: Callable[[int], None]) -> None:
    torch_threads(threads)
    generator = torch.Generator().manual_seed(rows)
    layer = Int8Linear(torch.nn.Linear(1536, 96), Rotation())
    values = torch.randn(rows, 1536, generator=generator)
    together = layer(values)
    assert all(torch.equal(layer(values[[row]])[0], together[row]) for row in range(rows))


def test_one_large_channel_does_not_drown_the_others() -> None:
    generator = torch.Generator().manual_seed(2)
    linear = torch.nn.Linear(256, 64, bias=False)
    rows = torch.randn(8, 256, generator=generator)
    rows[:, 77] = 300.0
    linear.weight.data[:, 77] = 0.0  # so that the result is of the other channels alone
    step = rows.abs().amax(dim=1, keepdim=True) / 90
    exact, unrotated = linear(rows), linear((rows / step).round() * step)
    assert (Int8Linear(linear, Rotation())(rows) - exact).norm() < (unrotated - exact).norm() / 3


def test_layers_that_share_a_rotation_do_not_mix_up_what_they_read() -> None:
    generator = torch.Generator().manual_seed(3)
    shared = Rotation()
    linears = [torch.nn.Linear(64, 8), torch.nn.Linear(64, 8), torch.nn.Linear(96, 8)]
    layers = [Int8Linear(linear, shared) for linear in linears]
    alone = [Int8Linear(linear, Rotation()) for linear in linears]
    narrow, other, wide = (torch.randn(2, size, generator=generator) for size in (64, 64, 96))
    for layer, values in ((0, narrow), (1, narrow), (2, wide), (0, other), (1, narrow), (0, narrow.clone())):
        assert torch.equal(layers[layer](values), alone[layer](values))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activation", [torch.nn.SiLU(), torch.nn.GELU(), ACT2FN["gelu_pytorch_tanh"]])
def test_an_activation_of_a_row_is_the_same_alone_and_with_others(
    activation: torch.nn.Module, threads: int, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(threads)
    values = 6 * torch.randn(1, 41, 8963, generator=torch.Generator().manual_seed(4))
    layer = RowActivation(activation)
    together = layer(values)
    assert torch.allclose(together, activation(values), atol=1e-6)
    assert all(torch.equal(layer(values[:, [row]]), together[:, [row]]) for row in range(41))
    assert layer(values[:, :0]).shape == (1, 0, 8963)


# The model


def test_logits_have_the_same_bits_for_all_cuts(model: TorchModel) -> None:
    dice = Random(3)
    text = [dice.randrange(200) for _ in range(120)]
    alone = logits_of(model, text, [1] * 120)
    for cuts in ([120], [60, 60], [7] * 17 + [1], [64, 1, 30, 25]):
        assert np.array_equal(logits_of(model, text, cuts), alone)


def test_many_sessions_in_random_company_write_what_each_writes_alone(model: TorchModel) -> None:
    """Prompts and spans are cut at random, batched with others, evicted and rebuilt."""
    texts: list[list[int]] = []
    for session in range(SESSIONS):
        dice, sampling = Random(session), sampling_of(session)
        text = [dice.randrange(200) for _ in range(PROMPT_TOKENS)]
        cache = model.kv_pool.new_cache()
        fresh = text
        for _ in range(WRITTEN):
            [[choice]] = model.forward([feeding(cache, fresh, 1, sampling)])
            fresh = [choice.token_id]
            text = [*text, choice.token_id]
        texts.append(text)

    async def verify(runner: ModelRunner, session: int) -> list[int]:
        """Return what the model chooses along the text that the session wrote alone."""
        dice, text, chosen, at = Random(-session), texts[session], list[int](), PROMPT_TOKENS
        await runner.forward(session, TokenTree(tuple(text[: PROMPT_TOKENS - 1])), 0, sampling_of(session))
        while at < len(text):
            span = min(dice.randint(1, 5), len(text) - at)
            wrong = [dice.randrange(200) for _ in range(dice.randint(0, 2))]
            tree = TokenTree((*text[: at + span - 1], *wrong))
            result = await runner.forward(session, tree, span + len(wrong), sampling_of(session))
            chosen += [choice.token_id for choice in result.choices[:span]]
            at += span
        return chosen

    async def scenario() -> list[list[int]]:
        bytes_per_token = model.kv_bytes_per_token
        store = KvStore(model.kv_pool, budget_bytes=600 * bytes_per_token, bytes_per_token=bytes_per_token)
        runner = ModelRunner(model, store, max_queue=SESSIONS, step_tokens=60, chunk_tokens=5)
        found = await asyncio.gather(*(verify(runner, session) for session in range(SESSIONS)))
        assert runner.kv_stats.evictions > SESSIONS
        assert runner.kv_stats.rebuilt_tokens > SESSIONS
        await runner.close()
        return found

    assert asyncio.run(scenario()) == [text[PROMPT_TOKENS:] for text in texts]
