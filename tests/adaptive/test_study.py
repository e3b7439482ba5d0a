"""The study's figures, on losses made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptive.duo import DuoConfig, DuoTransformer, Effort
from adaptive.oracle import route_costs, routes_of
from adaptive.routers import Router, Routers
from adaptive.study import by_budget, difficulty, findings, losses_of, router_routes

LAYERS = 2
ROUTES = routes_of(LAYERS)
BIG_FIRST, BIG_LAST = ROUTES.index((Effort.BIG, Effort.SKIP)), ROUTES.index((Effort.SKIP, Effort.BIG))
SMALL = ROUTES.index((Effort.SMALL, Effort.SMALL))


def losses() -> np.ndarray:
    """Return losses of 20 places: half gain from the first layer, half from the last, and one in four is hopeless."""
    found = np.full((20, len(ROUTES)), 4.0, np.float32)
    found[:10, BIG_FIRST] = found[10:, BIG_LAST] = 1.0
    found[::4] = 9.0
    return found


def test_the_oracle_chooses_for_each_place_and_a_fixed_route_for_all() -> None:
    routed = {1.0: np.full(20, BIG_FIRST)}
    none, one, two = by_budget(losses(), LAYERS, [0.0, 1.0, 2.0], routed, seed=1)
    hopeless = 5 * 9.0
    assert none["oracle"] == none["best_fixed"] == pytest.approx((15 * 4 + hopeless) / 20)
    assert one["oracle"] == pytest.approx((15 * 1 + hopeless) / 20)
    assert one["best_fixed"] == pytest.approx((7 * 1 + 8 * 4 + hopeless) / 20, abs=0.16)
    assert one["best_fixed_route"] in ("B-", "-B")
    assert one["layers_of_oracle"] == pytest.approx([0.35, 0.4], abs=0.11)
    assert one["router"] == pytest.approx((7 * 1 + 8 * 4 + hopeless) / 20, abs=0.16)
    assert one["router_cost"] == 1.0
    assert two["oracle"] <= one["oracle"] <= two["random"]


def test_hopeless_places_have_the_highest_loss_and_gain_nothing() -> None:
    found = difficulty(losses(), LAYERS, 1.0)
    assert found["gain_of_hardest_tenth"] == 0.0
    assert found["gain_of_top_tenth"] == 3.0
    assert found["top_tenth_overlap"] == 0.0
    assert found["hard_without_gain"] == 1.0
    assert found["rank_correlation"] < 0.5


def test_findings_say_what_decides_them() -> None:
    rows = by_budget(losses(), LAYERS, [1.0, 2.0], {1.0: np.full(20, BIG_FIRST)}, seed=1)
    found = findings(rows, difficulty(losses(), LAYERS, 1.0), LAYERS)
    assert found["the oracle with one big layer beats all big layers"]["reproduced"]
    assert found["learned routers are near the best fixed pattern and far from the oracle"]["reproduced"]
    assert found["difficulty is what can be gained, not how high the loss is"]["reproduced"]


def test_losses_and_routes_are_of_the_same_places() -> None:
    config = DuoConfig(vocabulary=20, layers=LAYERS, width=16, heads=2, kv_heads=1, big=32, context=16)
    duo = DuoTransformer(config, seed=1).eval()
    texts = np.random.default_rng(1).integers(20, size=(3, 12))
    found = losses_of(duo, texts, every=3, first=2)
    assert found.shape == (3 * 3, len(ROUTES))
    routers = Routers(duo).eval()
    with torch.no_grad():
        for router in routers.layers:
            assert isinstance(router, Router)
            router.linear.bias[Effort.SMALL] = 1.0
    assert router_routes(routers, texts, every=3, first=2).tolist() == [SMALL] * 9
    assert route_costs(LAYERS)[SMALL] == pytest.approx(2 / 16)
