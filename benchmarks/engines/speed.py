"""Times of forwards after 200 tokens of a text, engine by engine in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kit.statistics import rounded
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import TorchModel

TEXT_TOKENS = 200
SPANS = (1, 2, 4, 8, 16, 32)  # tokens of one session; a choice after each
SESSIONS = ((4, 8), (32, 8))  # sessions, and tokens of each
ROUNDS = 5
SEED = 7


class Bench:
    """One engine with sessions whose texts it has read."""

    def __init__(self, model: TorchModel, text: tuple[int, ...]) -> None:
        self._model = model
        most = max(sessions for sessions, _ in SESSIONS)
        self._text = text
        first = model.kv_pool.new_cache()
        self.prompt_ms = self._time([(first, self._text[:TEXT_TOKENS], 0)], SamplingParams())
        self._caches = [first, *(first.fork(TEXT_TOKENS) for _ in range(most - 1))]

    def step_ms(self, sessions: int, tokens: int, sampling: SamplingParams) -> float:
        """Return the time of a forward that reads some tokens of some sessions, and chooses after each."""
        span = self._text[TEXT_TOKENS : TEXT_TOKENS + tokens]
        taken = self._time([(cache, span, tokens) for cache in self._caches[:sessions]], sampling)
        for cache in self._caches[:sessions]:
            cache.crop(TEXT_TOKENS)
        return taken

    def _time(self, parts: Sequence[tuple[Any, tuple[int, ...], int]], sampling: SamplingParams) -> float:
        requests = [
            ForwardRequest(cache, TokenTree(tokens, (), cache.length), choices, sampling)
            for cache, tokens, choices in parts
        ]
        began = time.perf_counter()
        self._model.forward(requests)
        return (time.perf_counter() - began) * 1e3


def measure(models: Mapping[str, TorchModel], text: Sequence[int]) -> dict[str, Any]:
    """Return the medians of all engines' times in milliseconds, along a text; the engines take turns in each round.

    A text that is too short is repeated.
    """
    enough = TEXT_TOKENS + max(SPANS)
    whole = tuple(text) * (enough // len(text) + 1)
    benches = {name: Bench(model, whole[:enough]) for name, model in models.items()}
    greedy, drawn = SamplingParams(), SamplingParams(temperature=0.7, top_p=0.9, seed=SEED)
    cases = {f"1x{tokens}": (1, tokens, greedy) for tokens in SPANS}
    cases |= {f"{sessions}x{tokens}": (sessions, tokens, greedy) for sessions, tokens in SESSIONS}
    cases |= {f"{sessions}x{tokens} drawn": (sessions, tokens, drawn) for sessions, tokens in SESSIONS}
    times: dict[str, dict[str, list[float]]] = {name: {case: [] for case in cases} for name in benches}
    for _ in range(ROUNDS):
        for case, (sessions, tokens, sampling) in cases.items():
            for name, bench in benches.items():
                times[name][case].append(bench.step_ms(sessions, tokens, sampling))
    return {name: _row(benches[name], times[name]) for name in benches}


def _row(bench: Bench, times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    medians = {case: statistics.median(taken) for case, taken in times.items()}
    return {
        "ms": {case: rounded(taken, 1) for case, taken in medians.items()},
        "prompt_ms": rounded(bench.prompt_ms, 1),
        "tokens_per_s": rounded(1e3 / medians["1x1"], 2),
        "eight_over_one": rounded(medians["1x8"] / medians["1x1"]),
        "drawing_share": {
            case: rounded(1 - medians[case] / medians[f"{case} drawn"])
            for case in medians
            if f"{case} drawn" in medians
        },
    }
