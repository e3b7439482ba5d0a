"""Forwards of many sessions: what shares one, in which order, and who gets how much."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.errors import ConfigError
from cloud_supervisor.model.ports import ForwardResult, Urgency
from cloud_supervisor.scheduling.batch import QueuedRequest
from cloud_supervisor.scheduling.line import PATIENCE, _Queue
from tests.support.cloud.scheduling import Bench

VERIFY, WRITE, READ = Urgency.VERIFY, Urgency.WRITE, Urgency.READ


def check_answer(request: QueuedRequest, outcome: ForwardResult | BaseException) -> None:
    """Compare the choices or rows with those of the text's last positions, each once and in order."""
    assert isinstance(outcome, ForwardResult)
    wanted = [*range(request.tree.end - request.num_choices, request.tree.end)]
    if not request.encoded:
        assert outcome.encoding is None
        assert [choice.token_id for choice in outcome.choices] == wanted
        return
    assert outcome.choices == []
    assert outcome.encoding is not None
    assert outcome.encoding.start == wanted[0]
    assert outcome.encoding.scales.tolist() == wanted


def keys_of(bench: Bench) -> list[list[str]]:
    """Return the sessions of each forward."""
    return [[str(chunk.request.key) for chunk in step] for step in bench.steps]


# One forward


def test_spans_of_many_sessions_share_a_forward_up_to_its_budget() -> None:
    bench = Bench(step_tokens=10, chunk_tokens=10)
    for key in "abcd":
        bench.submit(key, 4)
    bench.run()
    assert keys_of(bench) == [["a", "b"], ["c", "d"]], "a verification that does not fit whole waits for the next"


def test_a_step_has_as_many_requests_as_it_may() -> None:
    bench = Bench(step_tokens=10, chunk_tokens=10, step_requests=2)
    for key in "abc":
        bench.submit(key, 1)
    bench.run()
    assert keys_of(bench) == [["a", "b"], ["c"]]


def test_a_prompt_fills_what_verifications_leave() -> None:
    bench = Bench(step_tokens=10, chunk_tokens=8)
    bench.submit("prompt", 20, 0, urgency=READ)
    bench.submit("a", 4)
    bench.run()
    assert keys_of(bench) == [["a", "prompt"], ["prompt"], ["prompt"]]
    assert [chunk.tokens for chunk in bench.chunks] == [4, 6, 8, 6]


def test_a_step_has_one_request_of_a_session() -> None:
    bench = Bench(step_tokens=10, chunk_tokens=10)
    bench.submit("a", 3)
    bench.submit("a", 4)
    bench.run()
    assert keys_of(bench) == [["a"], ["a"]]


def test_branches_count_and_come_whole_with_the_end_of_their_chain() -> None:
    bench = Bench(step_tokens=8, chunk_tokens=4)
    bench.submit("a", 5, 2, branches=[(3, 7), (3, 8), (5, 9)])
    bench.submit("b", 4)
    bench.run()
    assert [(str(chunk.request.key), chunk.start, chunk.end, chunk.tokens) for chunk in bench.chunks] == [
        ("a", 0, 4, 4),
        ("b", 0, 4, 4),
        ("a", 4, 5, 4),
    ]
    with pytest.raises(ValueError, match="branches: 8; one forward feeds at most 8 tokens"):
        bench.submit("c", 4, branches=[(3, token_id) for token_id in range(8)])
    with pytest.raises(ConfigError, match="chunk_tokens: 9 with step_tokens 8"):
        Bench(step_tokens=8, chunk_tokens=9)
    with pytest.raises(ConfigError, match="step_requests: 0"):
        Bench(step_requests=0)


# Order


def test_verifications_go_before_the_clouds_own_writing_and_prompts_come_last() -> None:
    bench = Bench(step_tokens=4, chunk_tokens=4)
    bench.submit("prompt", 4, 0, urgency=READ)
    bench.submit("takeover", 4, urgency=WRITE)
    bench.submit("span", 4, urgency=VERIFY)
    assert bench.run() == ["span", "takeover", "prompt"]


def test_a_prompt_is_not_put_off_for_ever() -> None:
    bench = Bench(step_tokens=4, chunk_tokens=4)
    prompt = bench.submit("prompt", 8, 0, urgency=READ)
    for number in range(3 * PATIENCE):
        bench.submit(f"span {number}", 4)
        bench.step()
    order = [key for [key] in keys_of(bench)]
    assert [order.index("prompt"), len(order) - order.count("prompt")] == [PATIENCE, 3 * PATIENCE - 2]
    assert isinstance(bench.outcome(prompt), ForwardResult)


def test_tenants_get_equal_shares_whatever_they_ask_for() -> None:
    """One tenant has thirty times as many devices as the other, and longer spans."""
    bench = Bench(max_queue=99, step_tokens=16, chunk_tokens=16)
    served: Counter[str] = Counter()
    number = 0
    for _ in range(200):
        waiting = Counter(request.tenant for request in bench.waiting)
        for tenant, most, tokens in (("many", 30, 7), ("two", 2, 5)):
            for _ in range(most - waiting[tenant]):
                number += 1
                bench.submit(f"session {number}", tokens, tenant=tenant)
        bench.step()
        for chunk in bench.steps[-1]:
            served[chunk.request.tenant] += chunk.tokens
    assert 0.8 < served["many"] / served["two"] < 1.25, served


def test_a_tenant_saves_nothing_up_while_it_is_away() -> None:
    bench = Bench(max_queue=99, step_tokens=4, chunk_tokens=4)
    for number in range(20):
        bench.submit(f"busy {number}", 4, tenant="busy")
    for _ in range(10):
        bench.step()
    for number in range(10):
        bench.submit(f"back {number}", 4, tenant="back")
    order = [key.split()[0] for key in bench.run()]
    assert order[10:20].count("back") == 5


# Memory


def test_texts_that_do_not_fit_together_are_read_one_after_the_other() -> None:
    bench = Bench(step_tokens=8, chunk_tokens=4, capacity_tokens=20)
    bench.submit("a", 12)
    bench.submit("b", 12)
    bench.run()
    assert keys_of(bench) == [["a"], ["a"], ["a"], ["b"], ["b"], ["b"]]


def test_a_verification_takes_the_memory_of_the_newest_prompt_once() -> None:
    bench = Bench(step_tokens=8, chunk_tokens=4, capacity_tokens=20)
    prompts = [bench.submit(key, 10, 0, urgency=READ) for key in ("old", "new")]
    bench.step()
    bench.submit("span", 6)
    bench.step()
    assert keys_of(bench)[1] == ["span", "old"]
    assert bench.released == ["new"]
    bench.submit("another", 6)
    bench.run()
    assert all(isinstance(bench.outcome(prompt), ForwardResult) for prompt in prompts)
    assert bench.released == ["new", "old"], "each prompt loses its place once"


def test_a_preempted_encoding_is_read_again_but_its_rows_are_made_once() -> None:
    bench = Bench(step_tokens=8, chunk_tokens=4, capacity_tokens=12)
    prompt = bench.submit("prompt", 10, 8, urgency=READ, encoded=True)
    bench.step()
    bench.submit("span", 6)
    bench.caches.texts.pop("prompt")  # as the store does with what is released
    bench.run()
    assert bench.released == ["prompt"]
    rows = [chunk.num_choices for chunk in bench.chunks if chunk.request is prompt]
    assert rows == [2, 0, 4, 2], "the second piece reads what was lost"
    check_answer(prompt, bench.outcome(prompt))


def test_a_cached_text_is_encoded_nevertheless() -> None:
    bench = Bench()
    bench.caches.texts["a"] = tuple(range(9))
    request = bench.submit("a", 8, 3, urgency=READ, encoded=True)
    bench.run()
    assert [(chunk.start, chunk.end) for chunk in bench.chunks] == [(5, 8)]
    check_answer(request, bench.outcome(request))
    with pytest.raises(ValueError, match="encoded: 0 rows"):
        bench.submit("a", 8, 0, encoded=True)
    with pytest.raises(ValueError, match="encoded: 1 rows of a text with 1 branches"):
        bench.submit("a", 8, 1, branches=[(3, 7)], encoded=True)


def test_a_cancelled_text_releases_its_memory() -> None:
    bench = Bench(step_tokens=4, chunk_tokens=4, capacity_tokens=20)
    waiting, running = bench.submit("a", 12), bench.submit("b", 8)
    bench.step()
    chunks = bench.start()
    bench.scheduler.cancel(waiting)
    bench.scheduler.cancel(running)
    bench.finish(chunks)
    assert not bench.step()
    assert sorted(map(str, bench.released)) == ["a", "b"]


def test_a_text_that_waits_for_memory_gets_that_of_one_that_needs_no_forward_any_more() -> None:
    bench = Bench(step_tokens=4, chunk_tokens=4, capacity_tokens=12)
    bench.submit("prompt", 8, 0, urgency=WRITE)
    bench.step()
    waiting = bench.submit("span", 8)
    bench.caches.texts["prompt"] = tuple(range(8))  # another request of its session has read the rest
    assert bench.step()
    assert bench.run() == ["prompt", "span", "span"]
    assert isinstance(bench.outcome(waiting), ForwardResult)


def test_no_memory_stays_reserved_for_texts_that_are_gone() -> None:
    """Texts end, fail, lose their place or are cancelled; then the whole budget is there again."""
    bench = Bench(step_tokens=8, chunk_tokens=4, capacity_tokens=20)
    bench.submit("ends", 8)
    bench.run()
    bench.submit("fails", 12)
    bench.finish(bench.start(), RuntimeError("out of memory"))
    prompt = bench.submit("prompt", 16, 0, urgency=READ)
    bench.step()
    bench.submit("span", 8)
    bench.step()
    assert "prompt" in bench.released, "it lost its place"
    cancelled = bench.submit("cancelled", 12)
    chunks = bench.start()
    bench.scheduler.cancel(cancelled)
    bench.scheduler.cancel(prompt)
    bench.finish(chunks)
    bench.run()
    before = len(bench.steps)
    bench.submit("x", 8)
    bench.submit("y", 12)
    bench.run()
    assert keys_of(bench)[before] == ["x", "y"]


def test_a_step_looks_at_few_of_many_tenants() -> None:
    """Ten times as many tenants make a step's order about ten times as dear, not a hundred times."""

    def ranked(tenants: int) -> int:
        bench = Bench(max_queue=5000, step_tokens=tenants, step_requests=tenants, chunk_tokens=1)
        for number in range(2 * tenants):
            bench.submit(f"session {number}", 1, tenant=f"tenant {number % tenants}")
        line = bench.scheduler._line
        counted, rank = 0, line._rank

        def counting(queue: _Queue) -> tuple[float, ...]:
            nonlocal counted
            counted += 1
            return rank(queue)

        line._rank = counting  # type: ignore[method-assign]
        bench.step()
        assert len(bench.steps[-1]) == tenants
        return counted

    assert ranked(1000) <= 12 * ranked(100)


# Any workload


@given(data=st.data())
def test_nobody_waits_for_ever_and_no_budget_is_exceeded(data: st.DataObject) -> None:
    chunk_tokens = data.draw(st.integers(1, 6))
    step_tokens = data.draw(st.integers(chunk_tokens, 12))
    capacity_tokens = data.draw(st.integers(12, 30))
    bench = Bench(max_queue=99, step_tokens=step_tokens, chunk_tokens=chunk_tokens, capacity_tokens=capacity_tokens)
    requests: list[QueuedRequest] = []
    for number in range(data.draw(st.integers(1, 20))):
        tokens = data.draw(st.integers(1, 12))
        urgency = data.draw(st.sampled_from(Urgency))
        encoded = urgency is READ and data.draw(st.booleans())
        requests.append(
            bench.submit(
                f"session {number % 7}",
                tokens,
                data.draw(st.integers(1, tokens)) if encoded or urgency is not READ else 0,
                tenant=data.draw(st.sampled_from("xyz")),
                urgency=urgency,
                encoded=encoded,
            )
        )
        for _ in range(data.draw(st.integers(0, 2))):
            bench.step()
    bench.run()
    assert {answer.request for answer in bench.answers} == {*requests}
    for request in requests:
        check_answer(request, bench.outcome(request))
    for step in bench.steps:
        assert 0 < sum(chunk.tokens for chunk in step) <= step_tokens
        assert all(chunk.tokens <= max(chunk_tokens, 1) for chunk in step)
        assert sum(chunk.request.tree.size for chunk in step) <= capacity_tokens
        assert len({chunk.request.key for chunk in step}) == len(step)
