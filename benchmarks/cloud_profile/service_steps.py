"""Times of the service's own model, for `python -m benchmarks cloud-profile --pair NAME`.

The clock is the processor's time of this process: with one thread it is what a forward takes on an idle core, also
where other processes share the machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.cloud_profile.types import Plan, Row
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import Dtype, TorchModel

CLOCK = "processor time of one thread"
_GREEDY = SamplingParams()
_WARM_UP = 1


class ServiceModel:
    """The cloud's model of a pair, on one thread, with sessions that hold a text."""

    def __init__(self, pair: str, dtype: Dtype) -> None:
        """Load it; raises ConfigError if the pair is not there."""
        folder = pair_folder(pair, "cloud")
        manifest = load_manifest(folder, role="cloud")
        self.name = manifest.model
        self.digest = manifest.digest
        self._model = TorchModel.of_manifest(folder, manifest, dtype=dtype, threads=1)

    def sessions(self, batch: int, context: int) -> list[SlotCache]:
        """Return caches that hold one text of `context` tokens."""
        first = self._model.kv_pool.new_cache()
        self._model.forward([ForwardRequest(first, TokenTree(_text(context)), 0, _GREEDY)])
        return [first, *(first.fork(context) for _ in range(batch - 1))]

    def step(self, caches: Sequence[SlotCache], tokens: int) -> None:
        """Read some tokens in each session, choose after each, and forget them."""
        held = caches[0].length
        tree = TokenTree(_text(tokens), (), held)
        self._model.forward([ForwardRequest(cache, tree, tokens, _GREEDY) for cache in caches])
        for cache in caches:
            cache.crop(held)


def measure(
    plan: Plan,
    model: ServiceModel,
    step_tokens: int,
    rows: Sequence[Row],
    keep: Callable[[list[Row], list[dict[str, Any]]], None],
    now: Callable[[], float] = time.process_time,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Add to `rows` the plan's other rows; call `keep` with rows and skipped steps after each. `now` is in seconds.

    Steps of more than `step_tokens` tokens are left out: the service makes none.
    """
    rows, skipped = list(rows), list[dict[str, Any]]()
    done = {(row.shape, row.dtype, row.batch, row.context, row.tokens) for row in rows}
    ends = now() + plan.budget_s
    for context in plan.contexts:
        caches = model.sessions(max(plan.batches), context)
        for batch in plan.batches:
            for tokens in plan.tokens:
                if batch * tokens > step_tokens or (model.name, plan.dtype, batch, context, tokens) in done:
                    continue
                if now() >= ends:
                    why = f"the budget of {plan.budget_s:g} s is spent"
                    skipped.append(
                        {"shape": model.name, "batch": batch, "context": context, "tokens": tokens, "why": why}
                    )
                    keep(rows, skipped)
                    continue
                times: list[float] = []
                for _ in range(plan.repeats + _WARM_UP):
                    began = now()
                    model.step(caches[:batch], tokens)
                    times.append((now() - began) * 1e3)
                p10, median, p90 = (round(float(value), 4) for value in _spread(times[_WARM_UP:]))
                rows.append(Row(model.name, plan.dtype, batch, context, tokens, median, p10, p90, plan.repeats))
                keep(rows, skipped)
        for cache in caches:
            cache.crop(0)
    return rows, skipped


def _spread(times: Sequence[float]) -> tuple[float, float, float]:
    low, high = np.percentile(times, (10, 90))
    return float(low), statistics.median(times), float(high)


def _text(tokens: int) -> tuple[int, ...]:
    return tuple(range(100, 100 + tokens))
