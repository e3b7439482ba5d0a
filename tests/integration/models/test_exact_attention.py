"""Attention with exact sums: the same bits whatever is read with a token, and the values of plain attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from chaperone_common.token_tree import BranchToken, TokenTree
from cloud_supervisor.model import exact_attention
from cloud_supervisor.model.batched_forward import Held, View, attend_exactly
from cloud_supervisor.model.exact_attention import round_keys, round_values

HEADS, GROUPS, HEAD_DIM = 12, 2, 128
SCALING = HEAD_DIM**-0.5
TEXT_TOKENS = 300
CPU = torch.device("cpu")


class Text:
    """Queries, keys and values [1, heads, tokens, head_dim] of a text."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.queries, self.keys, self.values = (
            torch.randn(1, heads, TEXT_TOKENS, HEAD_DIM, generator=generator) * size
            for heads, size in ((HEADS, 5.0), (GROUPS, 5.0), (GROUPS, 1.0))
        )

    def read(self, tree: TokenTree, order: Sequence[int], **options: Any) -> Tensor:
        """Return the results [fed, heads, head_dim] of a tree whose tokens are those of the text in this order."""
        found, _ = attend_exactly(
            torch.nn.Module(), self.queries[:, :, [*order[tree.start :]]], *self.held(tree, order), None,
            scaling=SCALING, **options,
        )  # fmt: skip
        return found[0]

    def held(self, tree: TokenTree, order: Sequence[int]) -> tuple[Held, Held]:
        views = [View(tree, CPU)]
        keys, values = round_keys(self.keys[:, :, [*order]]), round_values(self.values[:, :, [*order]])
        return Held([keys], views), Held([values], views)

    def chain(self, start: int, end: int, **options: Any) -> Tensor:
        """Return the results of the tokens from `start` to `end`, read together."""
        return self.read(TokenTree((0,) * (end - start), (), start), range(end), **options)


@pytest.fixture(scope="module", params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def text(threads: int) -> Text:
    return Text(threads)


@pytest.fixture
def alone(text: Text) -> Tensor:
    return torch.cat([text.chain(at, at + 1) for at in range(TEXT_TOKENS)])


def test_all_cuts_have_the_same_bits(text: Text, alone: Tensor) -> None:
    dice = Random(1)
    assert torch.equal(text.chain(0, TEXT_TOKENS), alone)
    for most in (3, 9, 17, 70):
        at = 0
        while at < TEXT_TOKENS:
            end = min(at + dice.randint(1, most), TEXT_TOKENS)
            assert torch.equal(text.chain(at, end), alone[at:end])
            at = end


@pytest.mark.parametrize("options", [{"sliding_window": 40}, {"softcap": 20.0}])
def test_windows_and_caps_have_the_same_bits(text: Text, options: dict[str, float]) -> None:
    alone = torch.cat([text.chain(at, at + 1, **options) for at in range(200, 220)])
    assert torch.equal(text.chain(200, 220, **options), alone)
    assert not torch.equal(text.chain(200, 220), alone)


def test_a_branch_has_the_bits_of_a_chain(text: Text, alone: Tensor) -> None:
    """Its keys follow those of the chain next to it, so their sums have another order."""
    for start, wrong in ((250, 6), (255, 1), (256, 20)):
        branches = (BranchToken(start - 1, 0), BranchToken(start + wrong, 0), BranchToken(start + wrong + 1, 0))
        order = [*range(start), *range(wrong), *range(start, start + 3)]
        found = text.read(TokenTree((0,) * wrong, branches, start), order)
        assert torch.equal(found[wrong:], alone[start : start + 3])


def test_company_has_the_same_bits(text: Text, alone: Tensor) -> None:
    other = Text(9)
    trees = [TokenTree((0,) * 7, (), 100), TokenTree((0,) * 3, (), 250), TokenTree((0,), (), 99)]
    texts, held = [other, text, other], [each.held(tree, range(tree.end)) for each, tree in
                                         zip((other, text, other), trees, strict=True)]  # fmt: skip
    keys, values = (
        Held([pair[part].tensors[0] for pair in held], [pair[part].views[0] for pair in held]) for part in (0, 1)
    )
    queries = [each.queries[:, :, tree.start : tree.end] for each, tree in zip(texts, trees, strict=True)]
    found, _ = attend_exactly(torch.nn.Module(), torch.cat(queries, dim=2), keys, values, None, scaling=SCALING)
    assert torch.equal(found[0, 7:10], alone[250:253])


@pytest.mark.parametrize("size", [1e-6, 1.0, 100.0])
def test_it_is_attention(size: float) -> None:
    text = Text(4)
    text.keys *= size
    mask = torch.ones(TEXT_TOKENS, TEXT_TOKENS, dtype=torch.bool).tril()
    keys, values = (each.repeat_interleave(HEADS // GROUPS, dim=1) for each in (text.keys, text.values))
    expected = scaled_dot_product_attention(
        text.queries.double(), keys.double(), values.double(), attn_mask=mask, scale=SCALING
    )
    error = text.chain(0, TEXT_TOKENS).double() - expected[0].transpose(0, 1)
    assert error.abs().max() < 1e-3 * max(1.0, size / 10)


def test_each_number_on_the_grid_is_a_whole_number_of_a_power_of_two() -> None:
    generator = torch.Generator().manual_seed(7)
    for size in (1e-30, 1e-9, 1.0, 3.0, 1e9):
        keys = torch.randn(5, HEAD_DIM, generator=generator) * size
        rounded = round_keys(keys).double()
        exponents = rounded.abs().amax(dim=1, keepdim=True).frexp().exponent
        whole = rounded / 2.0 ** (exponents.double() - 21)
        assert torch.equal(whole, whole.round())
        assert torch.allclose(rounded, keys.double(), atol=max(size * 1e-5, 2.0**-84))
    assert torch.equal(round_keys(torch.zeros(2, 4)), torch.zeros(2, 4))
    values = torch.tensor([3.0, -5000.0, 1e-9, 0.1])
    assert round_values(values).tolist() == [3.0, -4096.0, 0.0, round(0.1 * 2**16) / 2**16]


def test_weights_are_whole_numbers_that_add_up_to_one() -> None:
    scores = torch.randn(4, 900, generator=torch.Generator().manual_seed(8)).double() * 4
    shares = scores.softmax(dim=1)
    weights = exact_attention._whole_weights(scores.clone())
    assert torch.equal(weights, weights.round())
    assert torch.allclose(weights / 2**24, shares, atol=2e-7)
    assert ((weights.sum(dim=1) - 2**24).abs() < 450).all()


def test_sums_of_the_largest_numbers_are_exact() -> None:
    """Equal weights and values at the limit: the sum has as many bits as there can be."""
    tokens = 30_000
    values = round_values(torch.full((1, GROUPS, tokens, 2), 1e9))
    values[..., 1] -= 2.0**-11  # the last bit of such a number in float32
    view = View(TokenTree((0,), (), tokens - 1), CPU)
    keys = torch.zeros(1, GROUPS, tokens, HEAD_DIM)
    found, _ = attend_exactly(
        torch.nn.Module(), torch.zeros(1, HEADS, 1, HEAD_DIM), Held([keys], [view]), Held([values], [view]), None,
        scaling=SCALING,
    )  # fmt: skip
    share = round(2**24 / tokens) * tokens / 2**24
    assert torch.allclose(found, torch.tensor([4096.0, 4096.0 - 2.0**-11]).double().mul(share).float(), rtol=1e-7)
