"""The time of a forward, learned, and the pieces of long texts that are cut by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import Urgency
from cloud_supervisor.scheduling.batch import Chunk, QueuedRequest
from cloud_supervisor.scheduling.pace import Pace
from tests.support.cloud.scheduling import Bench

VERIFY, READ = Urgency.VERIFY, Urgency.READ
FIXED_S, TOKEN_S, PAIR_S = 0.06, 0.03, 1e-5  # of a processor with the default pair's cloud model, about
DEVICES, PERIOD_S, PROMPT = 16, 10.0, 4000


def cost_s(chunks: Sequence[Chunk]) -> float:
    pairs = sum(chunk.tokens * (chunk.start + (chunk.tokens + 1) / 2) for chunk in chunks)
    return FIXED_S + TOKEN_S * sum(chunk.tokens for chunk in chunks) + PAIR_S * pairs


def chunk_of(start: int, tokens: int) -> Chunk:
    text = TokenTree(tuple(range(start + tokens)))
    return Chunk(QueuedRequest("s", text, 1, SamplingParams()), start, start + tokens, 1)


def warm_pace() -> Pace:
    """Return one that has left out its first forward."""
    pace = Pace()
    pace.note([chunk_of(0, 8)], 30.0)
    return pace


# What is learned


def test_three_costs_are_learned_from_forwards_that_differ() -> None:
    pace = warm_pace()
    for start, tokens in [(0, 8), (200, 1), (40, 30), (1000, 8), (3000, 64), (100, 12)]:
        pace.note([chunk_of(start, tokens)], cost_s([chunk_of(start, tokens)]))
    for start, tokens in [(0, 16), (4000, 16), (500, 64)]:
        assert pace.seconds(tokens, start) == pytest.approx(cost_s([chunk_of(start, tokens)]) - FIXED_S, rel=1e-3)


def test_forwards_of_one_size_say_what_a_token_costs() -> None:
    """No fit can separate the three costs here."""
    pace = warm_pace()
    for _ in range(20):
        pace.note([chunk_of(0, 64)], 2.0)
    assert pace.seconds(64, 0) == pytest.approx(2.0, rel=0.01)
    assert 0.9 <= pace.seconds(32, 0) <= 1.1


def test_no_cost_is_negative_whatever_the_noise() -> None:
    rng = np.random.default_rng(3)
    pace = warm_pace()
    for _ in range(200):
        start, tokens = int(rng.integers(0, 4000)), int(rng.integers(1, 64))
        pace.note([chunk_of(start, tokens)], float(rng.exponential(0.5)))
        costs = [pace.seconds(count, begun) for begun in (0, 1000) for count in (1, 10, 100)]
        assert all(cost >= 0 for cost in costs)
        assert costs == sorted(costs[:3]) + sorted(costs[3:])


def test_a_machine_that_slows_down_is_followed() -> None:
    pace = warm_pace()
    for factor in (1.0, 4.0):
        for _ in range(60):
            for start, tokens in [(0, 8), (200, 1), (1000, 30)]:
                pace.note([chunk_of(start, tokens)], factor * cost_s([chunk_of(start, tokens)]))
    assert pace.seconds(16, 0) == pytest.approx(4 * (cost_s([chunk_of(0, 16)]) - FIXED_S), rel=0.05)


def test_a_stall_is_no_cost_of_its_tokens() -> None:
    pace = warm_pace()
    sizes = [(0, 8), (200, 1), (40, 30), (1000, 8)] * 10
    for start, tokens in sizes:
        pace.note([chunk_of(start, tokens)], cost_s([chunk_of(start, tokens)]))
    pace.note([chunk_of(100, 8)], 60.0)
    assert pace.seconds(16, 0) <= 1.5 * (cost_s([chunk_of(0, 16)]) - FIXED_S)


def test_tokens_within_a_time_take_no_longer_and_one_more_would() -> None:
    pace = warm_pace()
    for start, tokens in [(0, 8), (200, 1), (40, 30), (1000, 8)]:
        pace.note([chunk_of(start, tokens)], cost_s([chunk_of(start, tokens)]))
    for start in (0, 300, 4000):
        tokens = pace.tokens_within(0.5, start, 64)
        assert pace.seconds(tokens, start) <= 0.5 < pace.seconds(tokens + 1, start)
    assert pace.tokens_within(0.5, 0, 4) == 4
    assert pace.tokens_within(0.0, 0, 64) == 0


# What is cut


def test_pieces_of_a_prompt_become_smaller_as_they_become_dearer() -> None:
    bench = Bench(step_tokens=64, chunk_tokens=64, context_tokens=5000, prefill_s=0.5, cost_s=cost_s)
    bench.submit("prompt", PROMPT, 0, urgency=READ)
    bench.run()
    sizes = [chunk.tokens for chunk in bench.chunks]
    assert sizes[:2] == [8, 8], "nothing is known yet, and the first forward only warms the machine up"
    assert sum(sizes) == PROMPT
    assert max(sizes) > sizes[-2] >= 6
    seconds = sorted(cost_s([chunk]) - FIXED_S for chunk in bench.chunks)
    assert seconds[int(0.97 * len(seconds))] < 0.6
    assert seconds[-1] < 1.2, "at the end 8 tokens take longer; now and then 16 are tried"


def test_a_fast_model_reads_whole_pieces() -> None:
    bench = Bench(step_tokens=64, chunk_tokens=64, context_tokens=5000, prefill_s=0.5, cost_s=lambda _: 0.01)
    bench.submit("prompt", PROMPT, 0, urgency=READ)
    bench.run()
    assert [chunk.tokens for chunk in bench.chunks[2:-1]] == [64] * 62


@pytest.mark.parametrize(("fixed_s", "token_s"), [(0.5, 0.002), (2.0, 0.01)])
def test_a_model_whose_forwards_are_slow_whatever_they_read_gets_whole_pieces(fixed_s: float, token_s: float) -> None:
    """From forwards of 8 tokens alone it would seem that 8 tokens take too long."""

    def slow_s(chunks: Sequence[Chunk]) -> float:
        return fixed_s + token_s * sum(chunk.tokens for chunk in chunks)

    bench = Bench(step_tokens=320, chunk_tokens=64, context_tokens=5000, prefill_s=0.5, cost_s=slow_s)
    bench.submit("prompt", 2000, 0, urgency=READ)
    bench.run()
    assert len(bench.steps) <= 2000 / min(64, 0.5 / token_s) + 8


def test_lost_caches_of_one_forward_share_the_time() -> None:
    bench = Bench(max_queue=99, step_tokens=320, chunk_tokens=64, context_tokens=1100, prefill_s=0.5, cost_s=cost_s)
    for number in range(16):
        bench.submit(f"lost {number}", 1000, 8)
    bench.run()
    assert len(bench.answers) == 16
    few_s = 16 * 8 * (TOKEN_S + 1000 * PAIR_S)
    assert all(cost_s(step) < FIXED_S + 0.5 + few_s + 16 * 8 * TOKEN_S for step in bench.steps)  # and the last spans


def test_prompts_of_one_forward_share_the_time() -> None:
    bench = Bench(step_tokens=320, chunk_tokens=64, prefill_s=0.5, cost_s=cost_s)
    for number in range(8):
        bench.submit(f"prompt {number}", 12, 0, urgency=READ)
    bench.run()
    assert len(bench.answers) == 8
    reads = [sum(chunk.tokens for chunk in step) for step in bench.steps]
    assert all(TOKEN_S * tokens <= 0.55 for tokens in reads)
    assert len(bench.steps) < 12, "more than one fits into most forwards"


def test_a_lost_cache_is_read_again_next_to_other_verifications() -> None:
    """Its device waits, so that it may not wait for a forward without others."""
    bench = Bench(max_queue=99, step_tokens=320, chunk_tokens=64, context_tokens=500, prefill_s=0.5, cost_s=cost_s)
    bench.submit("lost", 300, 8)
    for number in range(200):
        bench.submit(f"s{number}", 16, 16)
        bench.submit(f"t{number}", 16, 16)
        bench.step()
        if any(answer.request.key == "lost" for answer in bench.answers):
            break
    pieces = [chunk.tokens for chunk in bench.chunks if chunk.request.key == "lost"]
    assert len(bench.steps) <= 2 * len(pieces)
    assert all(cost_s([chunk]) < 0.75 for chunk in bench.chunks if chunk.request.key == "lost")


def test_a_verification_is_never_cut_for_time() -> None:
    bench = Bench(step_tokens=64, chunk_tokens=64, prefill_s=0.1, cost_s=cost_s)
    for number in range(4):
        bench.submit(f"s{number}", 16, 16)
        bench.step()
    assert [chunk.tokens for chunk in bench.chunks] == [16] * 4


def percentile_ms(waits_s: Sequence[float]) -> float:
    return float(np.percentile(waits_s, 95)) * 1000


def waits_of(prompt: bool) -> list[float]:
    """Return how long verifications of 8 tokens take that come at even distances; perhaps next to a long prompt."""
    bench = Bench(max_queue=99, step_tokens=320, chunk_tokens=64, context_tokens=5000, prefill_s=0.5, cost_s=cost_s)
    bench.caches.texts = {f"s{number}": tuple(range(100)) for number in range(DEVICES)}
    rng = np.random.default_rng(1)
    arrivals = sorted(
        (float(at), f"s{number}") for number in range(DEVICES) for at in PERIOD_S * (rng.random(12) + range(12))
    )
    began, sent_at, waits = bench.now, {}, []
    if prompt:
        bench.submit("prompt", PROMPT, 0, urgency=READ)
    while arrivals or bench.waiting:
        while arrivals and began + arrivals[0][0] <= bench.now:
            at, key = arrivals.pop(0)
            bench.caches.texts[key] = tuple(range(100))
            sent_at[bench.submit(key, 108, 8)] = began + at
        answered = len(bench.answers)
        if not bench.step():
            if not arrivals:
                break
            bench.now = began + arrivals[0][0]
        waits += [
            bench.now - sent_at[answer.request] for answer in bench.answers[answered:] if answer.request in sent_at
        ]
    assert len(waits) == DEVICES * 12
    return waits


def test_a_long_prompt_delays_verifications_by_less_than_two_of_its_pieces() -> None:
    assert percentile_ms(waits_of(prompt=True)) - percentile_ms(waits_of(prompt=False)) < 2 * 500
    assert not math.isinf(percentile_ms(waits_of(prompt=True)))
