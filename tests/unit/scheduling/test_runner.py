"""The runner with a fake model that blocks, fails and counts; no sleeps, only events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from chaperone_common.errors import CloudTimeout, CloudUnavailable, ConfigError, Overloaded, PromptTooLong
from chaperone_common.token_tree import TokenTree
from cloud_supervisor.model.ports import ForwardRequest, ForwardResult
from cloud_supervisor.scheduling.runner import ModelRunner
from tests.support.cloud.runner import SAMPLED, Gate, error_of, forward, oracle, run, runner_of, started
from tests.support.fakes.clock import ManualClock
from tests.support.fakes.target import FakeTarget


def test_a_request_returns_the_models_choices_and_its_times() -> None:
    async def scenario() -> None:
        clock = ManualClock(100.0)
        model = FakeTarget(before_forward=lambda _: setattr(clock, "seconds", clock.seconds + 0.25))
        runner = runner_of(model, clock=clock)
        result = await forward(runner, "a", [1, 2, 3], 2, SAMPLED)
        assert result == ForwardResult(oracle(model, [1, 2, 3], 2), queue_us=0, compute_us=250_000)
        assert await forward(runner, "a", [1, 2, 3], 0, SAMPLED) == ForwardResult([], 0, 0, cached_tokens=3)
        assert model.forwards == 1, "cached tokens are not fed again"
        await runner.close()

    run(scenario)


def test_a_long_request_runs_in_chunks() -> None:
    async def scenario() -> None:
        clock = ManualClock(100.0)
        chunks: list[tuple[int, int]] = []

        def note(requests: Sequence[ForwardRequest]) -> None:
            chunks.append((len(requests[0].tree.token_ids), requests[0].num_choices))
            clock.seconds += 0.25

        model = FakeTarget(before_forward=note)
        runner = runner_of(model, chunk_tokens=4, clock=clock)
        result = await forward(runner, "a", list(range(15)), 6, SAMPLED)
        assert chunks == [(4, 0), (4, 0), (4, 3), (3, 3)]
        assert result == ForwardResult(oracle(model, list(range(15)), 6), queue_us=0, compute_us=1_000_000)
        chunks.clear()
        again = await forward(runner, "a", [*range(15), 15], 2, SAMPLED)
        assert chunks == [(2, 2)], "only tokens that the cache lacks count"
        assert again.choices == oracle(model, [*range(15), 15], 2)
        await runner.close()

    run(scenario)


@pytest.mark.parametrize("chunk_tokens", [2, 4, 15])
def test_the_first_choices_stay_without_log_probabilities_however_a_request_is_cut(chunk_tokens: int) -> None:
    async def scenario() -> None:
        measured: list[int] = []  # choices of each forward
        model = FakeTarget(
            before_forward=lambda requests: measured.append(requests[0].num_choices - requests[0].first_reported)
        )
        runner = runner_of(model, chunk_tokens=chunk_tokens)
        text = TokenTree(tuple(range(15)))
        result = await runner.forward("a", text, 6, SAMPLED, top_logprobs=1, first_reported=4)
        assert [choice.logprobs is None for choice in result.choices] == [True] * 4 + [False] * 2
        assert sum(measured) == 2
        await runner.close()

    run(scenario)


def test_a_cached_prompt_is_not_cropped_to_its_first_chunk() -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model)
        tokens = [1, 2, 3, 4, 5, 6]
        await forward(runner, "a", tokens, 1, SAMPLED)
        assert (await forward(runner, "a", tokens[:3], 0, SAMPLED)).choices == []
        result = await forward(runner, "a", [*tokens, 7], 1, SAMPLED)
        assert model.tokens_read == 7, "each token once"
        assert result.choices == oracle(model, [*tokens, 7], 1)
        await forward(runner, "a", [1, 2, 9], 0, SAMPLED)
        assert model.tokens_read == 8, "another text is read after their common prefix"
        await runner.close()

    run(scenario)


def test_other_requests_run_between_the_chunks() -> None:
    async def scenario() -> None:
        gate = Gate()
        model = FakeTarget(before_forward=gate)
        runner = runner_of(model, chunk_tokens=2)
        long = await started(forward(runner, "long", [1, 1, 2, 2, 3, 3], 6, SAMPLED))
        await gate.until_entered()
        short = await started(forward(runner, "short", [9], 1, SAMPLED))
        gate.opened.set()
        assert (await long).choices == oracle(model, [1, 1, 2, 2, 3, 3], 6)
        await short
        assert gate.order == [1, 9, 2, 3]
        await runner.close()

    run(scenario)


def test_two_texts_that_do_not_fit_together_are_read_one_after_the_other() -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model, budget_tokens=50, chunk_tokens=4)
        texts = [list(range(40)), list(range(40, 0, -1))]
        results = await asyncio.gather(*(forward(runner, key, text, 30, SAMPLED) for key, text in enumerate(texts)))
        assert [result.choices for result in results] == [oracle(model, text, 30) for text in texts]
        assert runner.kv_stats.evictions == 1
        await runner.close()

    run(scenario)


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_no_chunk_runs_for_a_cancelled_caller(how: str) -> None:
    async def scenario() -> None:
        gate = Gate()
        runner = runner_of(FakeTarget(before_forward=gate), chunk_tokens=1)
        request = await started(forward(runner, "a", [1, 2, 3], 1, SAMPLED, deadline_ms=60_000))
        await gate.until_entered()
        closing = asyncio.create_task(runner.close() if how == "closed" else asyncio.sleep(0))
        if how == "cancelled":
            request.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        assert isinstance(await error_of(request), CloudUnavailable if how == "closed" else asyncio.CancelledError)
        await closing
        await runner.close()
        assert gate.order == [1]

    run(scenario)


def test_a_deadline_is_for_the_first_chunk() -> None:
    async def scenario() -> None:
        clock = ManualClock(100.0)
        model = FakeTarget(before_forward=lambda _: setattr(clock, "seconds", clock.seconds + 1))
        runner = runner_of(model, chunk_tokens=1, clock=clock)
        assert (await forward(runner, "a", [1, 2, 3], 1, SAMPLED, deadline_ms=500)).choices == oracle(
            model, [1, 2, 3], 1
        )
        await runner.close()

    run(scenario)


def test_first_come_first_served() -> None:
    async def scenario() -> None:
        gate = Gate()
        runner = runner_of(FakeTarget(before_forward=gate))
        tasks = [await started(forward(runner, f"session {i}", [i], 1, SAMPLED)) for i in range(6)]
        await gate.until_entered()
        assert runner.busy
        assert runner.queue_length == 5
        gate.opened.set()
        await asyncio.gather(*tasks)
        assert gate.order == [0, 1, 2, 3, 4, 5]
        await runner.close()

    run(scenario)


def test_a_full_queue_refuses_at_once_with_a_retry_delay() -> None:
    async def scenario() -> None:
        gate, clock = Gate(), ManualClock(100.0)
        gate.opened.set()
        model = FakeTarget(before_forward=lambda _: setattr(clock, "seconds", clock.seconds + 0.25))
        runner = runner_of(model, max_queue=2, clock=clock)
        await forward(runner, "a", [1], 1, SAMPLED)
        gate.opened.clear()
        gate.entered.clear()
        model.before_forward = gate
        first = await started(forward(runner, "a", [1], 1, SAMPLED))
        await gate.until_entered()
        tasks = [first, *[await started(forward(runner, key, [1], 1, SAMPLED)) for key in "bc"]]
        refusal = await error_of(forward(runner, "d", [1], 1, SAMPLED))
        assert isinstance(refusal, Overloaded)
        assert "2 requests are waiting, the limit is 2" in refusal.message
        assert refusal.retry_after_ms == 750, "two waiting and one running, 250 ms each"
        gate.opened.set()
        await asyncio.gather(*tasks)
        await forward(runner, "d", [1], 1, SAMPLED)
        await runner.close()

    run(scenario)


def test_a_request_whose_deadline_passed_in_the_queue_never_starts() -> None:
    async def scenario() -> None:
        gate, clock = Gate(), ManualClock(100.0)
        runner = runner_of(FakeTarget(before_forward=gate), clock=clock)
        first = await started(forward(runner, "a", [1], 1, SAMPLED, deadline_ms=60_000))
        late = await started(forward(runner, "b", [2], 1, SAMPLED, deadline_ms=30_000))
        patient = await started(forward(runner, "c", [3], 1, SAMPLED, deadline_ms=90_000))
        await gate.until_entered()
        clock.seconds += 61
        gate.opened.set()
        error = await error_of(late)
        assert isinstance(error, CloudTimeout)
        assert "waited 61000 ms" in error.message
        assert (await first).choices, "a request that was started in time is finished"
        assert (await patient).queue_us == 61_000_000
        assert gate.order == [1, 3]
        await runner.close()

    run(scenario)


def test_a_caller_is_refused_at_its_deadline_before_its_turn_comes() -> None:
    async def scenario() -> None:
        gate = Gate()
        runner = runner_of(FakeTarget(before_forward=gate))
        first = await started(forward(runner, "a", [1], 1, SAMPLED))
        error = await error_of(forward(runner, "b", [2], 1, SAMPLED, deadline_ms=1))
        assert isinstance(error, CloudTimeout)
        assert runner.queue_length == 0
        gate.opened.set()
        await first
        await runner.close()

    run(scenario)


def test_cancelling_a_waiting_request_removes_it_from_the_queue() -> None:
    async def scenario() -> None:
        gate = Gate()
        runner = runner_of(FakeTarget(before_forward=gate))
        first = await started(forward(runner, "a", [1], 1, SAMPLED))
        second = await started(forward(runner, "b", [2], 1, SAMPLED))
        await gate.until_entered()
        second.cancel()
        assert isinstance(await error_of(second), asyncio.CancelledError)
        assert runner.queue_length == 0
        gate.opened.set()
        await first
        await runner.close()
        assert gate.order == [1]

    run(scenario)


def test_cancelling_a_running_request_lets_it_finish_and_keeps_its_work() -> None:
    async def scenario() -> None:
        gate = Gate()
        model = FakeTarget(before_forward=gate)
        runner = runner_of(model)
        first = await started(forward(runner, "a", [1, 2, 3], 1, SAMPLED))
        await gate.until_entered()
        first.cancel()
        assert isinstance(await error_of(first), asyncio.CancelledError)
        gate.opened.set()
        result = await forward(runner, "a", [1, 2, 3, 4], 1, SAMPLED)
        assert result.choices == oracle(model, [1, 2, 3, 4], 1)
        assert model.tokens_read == 4
        await runner.close()

    run(scenario)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), StopIteration()])
def test_a_failure_of_the_model_reaches_only_its_caller(error: Exception) -> None:
    def fail_on_nine(requests: Sequence[ForwardRequest]) -> None:
        if any(9 in request.tree.token_ids for request in requests):
            raise error

    async def scenario() -> None:
        model = FakeTarget(before_forward=fail_on_nine)
        runner = runner_of(model)
        await forward(runner, "a", [1, 2], 1, SAMPLED)
        outcomes = await asyncio.gather(
            forward(runner, "a", [1, 2, 9], 1, SAMPLED),
            forward(runner, "b", [4], 1, SAMPLED),
            forward(runner, "a", [1, 2, 3], 1, SAMPLED),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], RuntimeError)
        assert isinstance(outcomes[1], ForwardResult)
        assert isinstance(outcomes[2], ForwardResult)
        assert outcomes[2].choices == oracle(model, [1, 2, 3], 1)
        await runner.close()

    run(scenario)


def test_impossible_requests_are_refused_before_they_are_queued() -> None:
    async def scenario() -> None:
        runner = runner_of(FakeTarget(context_tokens=4))
        assert isinstance(await error_of(forward(runner, "a", [], 0, SAMPLED)), ValueError)
        assert isinstance(await error_of(forward(runner, "a", [1], 2, SAMPLED)), ValueError)
        assert isinstance(await error_of(forward(runner, "a", [1] * 5, 1, SAMPLED)), PromptTooLong)
        assert runner.kv_stats.sessions == 0
        await runner.close()

    run(scenario)
    with pytest.raises(ConfigError, match="max_queue: 0"):
        runner_of(FakeTarget(), max_queue=0)
    with pytest.raises(ConfigError, match="chunk_tokens: 0"):
        runner_of(FakeTarget(), chunk_tokens=0)


def test_a_conversation_beyond_the_memory_is_refused_alone() -> None:
    async def scenario() -> None:
        runner = runner_of(FakeTarget(), budget_tokens=4)
        small = await forward(runner, "a", [1, 2, 3], 1, SAMPLED)
        assert isinstance(await error_of(forward(runner, "b", [1] * 5, 1, SAMPLED)), PromptTooLong)
        again = await forward(runner, "a", [1, 2, 3], 1, SAMPLED)
        assert again.choices == small.choices
        assert runner.kv_stats.evictions == 0
        await runner.close()

    run(scenario)


def test_freeing_a_session_waits_for_its_running_forward() -> None:
    async def scenario() -> None:
        gate = Gate()
        model = FakeTarget(before_forward=gate)
        runner = runner_of(model)
        request = await started(forward(runner, "a", [1, 2], 1, SAMPLED))
        await gate.until_entered()
        runner.free("a")
        gate.opened.set()
        assert (await request).choices == oracle(model, [1, 2], 1)
        await runner.close()
        assert runner.kv_stats.sessions == 0
        runner.free("a")

    run(scenario)


def test_closing_finishes_the_running_forward_and_refuses_the_rest() -> None:
    async def scenario() -> None:
        gate = Gate()
        runner = runner_of(FakeTarget(before_forward=gate))
        running = await started(forward(runner, "a", [1], 1, SAMPLED))
        waiting = await started(forward(runner, "b", [2], 1, SAMPLED))
        await gate.until_entered()
        closing = asyncio.create_task(runner.close())
        assert isinstance(await error_of(waiting), CloudUnavailable)
        assert isinstance(await error_of(forward(runner, "c", [3], 1, SAMPLED)), CloudUnavailable)
        gate.opened.set()
        assert (await running).choices
        await closing
        await runner.close()

    run(scenario)


def test_evictions_do_not_change_choices_among_many_sessions() -> None:
    """Twelve conversations grow and shrink at random, with room for about three of them."""

    async def converse(runner: ModelRunner, model: FakeTarget, key: int) -> None:
        dice = random.Random(key)
        tokens = [dice.randrange(64) for _ in range(8)]
        for _ in range(15):
            choices = dice.randint(0, len(tokens))
            result = await forward(runner, key, tokens, choices, SAMPLED)
            assert result.choices == oracle(model, tokens, choices)
            kept = dice.randint(max(1, len(tokens) - 4), len(tokens))
            tokens = tokens[:kept] + [dice.randrange(64) for _ in range(dice.randint(0, 6))]

    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model, max_queue=12, budget_tokens=120)
        await asyncio.gather(*(converse(runner, model, key) for key in range(12)))
        stats = runner.kv_stats
        assert stats.evictions > 12
        assert stats.rebuilt_tokens > 0
        assert stats.bytes_used <= stats.budget_bytes
        await runner.close()

    run(scenario)


def test_sessions_that_ask_again_at_once_share_their_forwards() -> None:
    """They would take turns if the next forward began before they had read their answers."""
    sizes: list[int] = []

    async def write(runner: ModelRunner, key: str) -> None:
        tokens = [1]
        for _ in range(10):
            result = await forward(runner, key, tokens, 1)
            tokens.append(result.choices[0].token_id)

    async def scenario() -> None:
        runner = runner_of(FakeTarget(before_forward=lambda requests: sizes.append(len(requests))))
        await asyncio.gather(*(write(runner, key) for key in "abc"))
        await runner.close()

    run(scenario)
    assert sizes == [1, 2, *[3] * 9, 1] or sizes == [1, *[3] * 9, 2], sizes
