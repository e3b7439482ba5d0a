"""The Duo network: its routes, its plain models, the oracle against brute force, and routers on planted tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptive.duo import DuoConfig, DuoTransformer, Effort, cost_of, random_routes
from adaptive.oracle import best_fixed, best_under, gain_of, route_costs, route_losses, routes_of
from adaptive.routers import Routers, train_routers

CONFIG = DuoConfig(vocabulary=40, layers=4, width=32, heads=4, kv_heads=2, big=64, context=32)
SKIP, SMALL, BIG = Effort.SKIP, Effort.SMALL, Effort.BIG


@pytest.fixture(scope="module")
def duo() -> DuoTransformer:
    network = DuoTransformer(CONFIG, seed=1).eval()
    with torch.no_grad():  # random weights of the usual size change next to nothing
        for parameter in network.parameters():
            parameter.mul_(4.0)
    return network


def text(tokens: int = 12, seed: int = 3) -> torch.Tensor:
    return torch.randint(CONFIG.vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))


def test_a_small_ffn_is_a_sixteenth() -> None:
    assert CONFIG.small * 16 == CONFIG.big
    routes = torch.tensor([[[SKIP, SMALL, BIG, BIG]]])
    assert cost_of(routes).item() == pytest.approx(2 + 1 / 16)


def test_without_routes_all_tokens_take_the_big_ffns(duo: DuoTransformer) -> None:
    token_ids = text()[None]
    with torch.inference_mode():
        torch.testing.assert_close(duo(token_ids), duo(token_ids, duo.fixed((BIG,) * 4, token_ids)))


def test_a_route_is_the_tokens_own(duo: DuoTransformer) -> None:
    token_ids = text()[None]
    routes = random_routes((1, 12), 4, torch.Generator().manual_seed(5))
    other = routes.clone()
    other[0, 7, 2] = (other[0, 7, 2] + 1) % 3
    with torch.inference_mode():
        before, after = duo(token_ids, routes), duo(token_ids, other)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7] - after[:, 7]).abs().max() > 1e-3


@pytest.mark.parametrize("pattern", [(BIG,) * 4, (SMALL,) * 4, (SKIP, SMALL, BIG, SKIP), (SKIP,) * 4])
def test_a_plain_model_computes_as_one_pattern(duo: DuoTransformer, pattern: tuple[Effort, ...]) -> None:
    token_ids = text()[None]
    with torch.inference_mode():
        expected = duo(token_ids, duo.fixed(pattern, token_ids))
        torch.testing.assert_close(duo.plain(pattern)(token_ids).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("efforts", [(SKIP, SMALL, BIG), (SMALL, BIG)])
def test_the_oracle_is_that_of_brute_force(duo: DuoTransformer, efforts: tuple[Effort, ...]) -> None:
    token_ids, places = text(), [0, 4, 10]
    found = route_losses(duo, token_ids, places, efforts)
    routes = routes_of(4, efforts)
    assert found.shape == (3, len(efforts) ** 4)
    with torch.inference_mode():
        for row, place in zip(found, places, strict=True):
            whole = duo.fixed((BIG,) * 4, token_ids[None]).repeat(len(routes), 1, 1).clone()
            whole[:, place] = torch.tensor(routes)
            logits = duo(token_ids.expand(len(routes), -1), whole)[:, place]
            expected = torch.nn.functional.cross_entropy(
                logits, token_ids[place + 1].expand(len(routes)), reduction="none"
            )
            np.testing.assert_allclose(row, expected.numpy(), atol=1e-4)


def test_more_budget_is_never_worse_and_the_oracle_beats_the_best_fixed_route(duo: DuoTransformer) -> None:
    losses, costs = route_losses(duo, text(), range(11)), route_costs(4)
    before = np.inf
    for budget in (0.0, 0.25, 1.0, 2.0, 4.0):
        best, fixed = best_under(losses, costs, budget), best_fixed(losses, costs, budget)
        assert (costs[best] <= budget + 1e-6).all()
        assert costs[fixed] <= budget + 1e-6
        mean = losses[np.arange(11), best].mean()
        assert mean <= losses[:, fixed].mean()
        assert mean <= before
        before = mean
        assert (gain_of(losses, costs, budget, fixed) >= 0).all()


def test_without_a_budget_there_is_one_route(duo: DuoTransformer) -> None:
    losses, costs = route_losses(duo, text(), [2, 3]), route_costs(4)
    assert best_under(losses, costs, 0.0).tolist() == [0, 0]
    assert routes_of(4)[0] == (SKIP,) * 4


class Planted:
    """A network in which the big FFN of the last layer is right about the hard tokens, and nothing else matters."""

    HARD = 20  # ids from here on are hard: another one follows than the network believes without the big FFN

    def __init__(self) -> None:
        config = DuoConfig(vocabulary=CONFIG.vocabulary, layers=2, width=32, heads=4, kv_heads=2, big=64, context=32)
        self.duo = DuoTransformer(config, seed=2)
        rng = torch.Generator().manual_seed(1)
        self.texts = torch.randint(config.vocabulary, (64, 16), generator=rng)
        following = torch.randperm(config.vocabulary, generator=rng)
        for place in range(15):
            self.texts[:, place + 1] = following[self.texts[:, place]]
        optimiser = torch.optim.Adam(self.duo.parameters(), lr=3e-3)
        for _ in range(220):  # easy tokens are learned by all routes, hard ones by the big FFN of the last layer
            routes = random_routes((64, 16), 2, rng)
            hard = self.texts >= self.HARD
            routes[..., 1] = torch.where(hard & (routes[..., 1] != BIG), SKIP, routes[..., 1])
            weight = (~hard | (routes[..., 1] == BIG))[:, :-1].float()
            logits = self.duo(self.texts, routes)[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), self.texts[:, 1:].flatten(), reduction="none"
            )
            loss = (losses * weight.flatten()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.loss = loss.item()


def test_routers_give_the_big_ffn_to_the_tokens_that_gain_from_it() -> None:
    planted = Planted()
    assert planted.loss < 0.3
    routers = train_routers(planted.duo, planted.texts, 0.6, steps=150)
    with torch.inference_mode():
        big = routers.efforts(planted.texts)[..., 1] == BIG
    hard = planted.texts >= Planted.HARD
    assert big[hard].float().mean() > big[~hard].float().mean() + 0.3


def test_routers_keep_to_their_budget_and_leave_the_network(duo: DuoTransformer) -> None:
    texts = torch.stack([text(16, seed) for seed in range(16)])
    with torch.inference_mode():
        before = duo(texts)
    costs = {}
    for budget in (0.5, 3.0):
        routers = train_routers(duo, texts, budget, steps=60)
        with torch.inference_mode():
            costs[budget] = float(routers.logits(texts)[1].mean())
    assert costs[0.5] < costs[3.0]
    assert isinstance(routers, Routers)
    with torch.inference_mode():
        torch.testing.assert_close(duo(texts), before)
