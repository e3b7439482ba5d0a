"""The study of the paper on one network: routes under budgets, layers that the oracle uses, and difficulty as gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive.duo import DuoTransformer, Effort
from adaptive.oracle import ALL, Floats, best_fixed, best_under, gain_of, route_costs, route_losses, routes_of
from adaptive.routers import Routers

_RANDOM_ROUTES = 200  # of each budget


def losses_of(duo: DuoTransformer, texts: NDArray[np.int64], every: int, first: int) -> Floats:
    """Return the losses [places, routes] of all routes at every `every`-th place of some texts, from `first` on."""
    duo.eval()
    found = [
        route_losses(duo, torch.from_numpy(text), range(first, len(text) - 1, every), ALL)  # [places, routes]
        for text in texts
    ]
    return np.concatenate(found)


def router_routes(routers: Routers, texts: NDArray[np.int64], every: int, first: int) -> NDArray[np.int64]:
    """Return the number of the route that routers choose at the same places [places].

    A router sees the state that its own earlier choices made, in a text whose tokens are all routed.
    """
    chosen = []
    with torch.inference_mode():
        for text in texts:
            efforts = routers.efforts(torch.from_numpy(text)[None])[0]  # [tokens, layers]
            chosen.append(efforts[range(first, len(text) - 1, every)])
    place = len(Effort) ** np.arange(chosen[0].shape[1])[::-1]
    numbers: NDArray[np.int64] = torch.cat(chosen).numpy() @ place
    return numbers


def by_budget(
    losses: Floats, layers: int, budgets: Sequence[float], routed: Mapping[float, NDArray[np.int64]], seed: int
) -> list[dict[str, Any]]:
    """Return the mean loss of the oracle, the best fixed route, random routes and routers, at each budget.

    `routed` has the routes that the routers of each budget chose. The best fixed route and the oracle are chosen and
    scored on the same places: both are bounds.
    """
    costs = route_costs(layers)
    draws = np.random.default_rng(seed)
    everything = np.arange(len(losses))
    rows = []
    for budget in budgets:
        best, fixed = best_under(losses, costs, budget), best_fixed(losses, costs, budget)
        allowed = np.flatnonzero(costs <= budget + 1e-6)
        near = allowed[costs[allowed] > budget - 1.0]  # random routes use their budget
        row = {
            "budget": budget,
            "oracle": _mean(losses[everything, best]),
            "oracle_cost": _mean(costs[best]),
            "best_fixed": _mean(losses[:, fixed]),
            "best_fixed_route": _shown(routes_of(layers)[fixed]),
            "random": _mean(losses[:, draws.choice(near, _RANDOM_ROUTES)]),
            "layers_of_oracle": _use_of_layers(best, layers),
        }
        if budget in routed:
            row |= {
                "router": _mean(losses[everything, routed[budget]]),
                "router_cost": _mean(costs[routed[budget]]),
                "router_layers": _use_of_layers(routed[budget], layers),
            }
        rows.append(row)
    return rows


def difficulty(losses: Floats, layers: int, budget: float) -> dict[str, Any]:
    """Return how far the loss of a token says what it can gain: rank correlation, and the overlap of the top tenths.

    The gain is of the oracle under a budget over the route of small FFNs alone.
    """
    costs = route_costs(layers)
    base = routes_of(layers).index((Effort.SMALL,) * layers)
    gain, loss = gain_of(losses, costs, max(budget, costs[base]), base), losses[:, base]
    tenth = max(1, len(losses) // 10)
    hardest, gaining = (set(np.argsort(-values, kind="stable")[:tenth].tolist()) for values in (loss, gain))
    return {
        "budget": budget,
        "rank_correlation": round(float(_ranks_correlate(loss, gain)), 4),
        "top_tenth_overlap": round(len(hardest & gaining) / tenth, 4),
        "gain_of_hardest_tenth": _mean(gain[[*hardest]]),
        "gain_of_top_tenth": _mean(gain[[*gaining]]),
        "mean_gain": _mean(gain),
        "hard_without_gain": round(float((gain[[*hardest]] < gain.mean()).mean()), 4),
    }


def findings(rows: Sequence[Mapping[str, Any]], hard: Mapping[str, Any], layers: int) -> dict[str, dict[str, Any]]:
    """Return the paper's findings, each with the numbers that decide it and `reproduced` true or false."""
    whole = rows[-1]["best_fixed"] if rows[-1]["budget"] >= layers else None
    one = next((row for row in rows if row["budget"] == 1.0), None)
    routed = [row for row in rows if "router" in row and 0 < row["budget"] < layers]
    found: dict[str, dict[str, Any]] = {}
    all_big = whole
    if one is not None and all_big is not None:
        found["the oracle with one big layer beats all big layers"] = {
            "oracle_at_1": one["oracle"],
            "best_fixed_at_all": all_big,
            "reproduced": bool(one["oracle"] < all_big),
        }
    if routed:
        to_fixed = float(np.mean([abs(row["router"] - row["best_fixed"]) for row in routed]))
        to_oracle = float(np.mean([row["router"] - row["oracle"] for row in routed]))
        found["learned routers are near the best fixed pattern and far from the oracle"] = {
            "mean_distance_to_fixed": round(to_fixed, 4),
            "mean_distance_to_oracle": round(to_oracle, 4),
            "reproduced": bool(to_fixed < 0.25 * to_oracle),
        }
    found["difficulty is what can be gained, not how high the loss is"] = {
        "rank_correlation": hard["rank_correlation"],
        "top_tenth_overlap": hard["top_tenth_overlap"],
        "reproduced": bool(hard["top_tenth_overlap"] < 0.75),
    }
    return found


def _use_of_layers(routes: NDArray[np.int64], layers: int) -> list[float]:
    """Return the share of places at which each layer is big."""
    digits = routes[:, None] // (len(Effort) ** np.arange(layers)[::-1]) % len(Effort)
    return [round(float(share), 4) for share in (digits == Effort.BIG).mean(axis=0)]


def _ranks_correlate(first: Floats, second: Floats) -> float:
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean(values: NDArray[Any]) -> float:
    return round(float(np.mean(values)), 4)


def _shown(route: tuple[Effort, ...]) -> str:
    return "".join({Effort.SKIP: "-", Effort.SMALL: "s", Effort.BIG: "B"}[effort] for effort in route)
