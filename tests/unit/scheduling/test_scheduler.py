"""The scheduler on a virtual clock: deadlines, turns, chunks, cancellation, overload and closing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.errors import CloudTimeout, CloudUnavailable, ConfigError, Overloaded, PromptTooLong
from chaperone_common.types import Choice
from cloud_supervisor.model.ports import ForwardResult
from cloud_supervisor.scheduling.batch import QueuedRequest
from tests.support.cloud.scheduling import Bench


def test_an_answer_has_the_choices_and_times_of_its_request() -> None:
    bench = Bench()
    request = bench.submit("a", 4, 2)
    bench.now += 1.5
    bench.run()
    choices = [Choice(2, 0.0, 0), Choice(3, 0.0, 0)]
    assert bench.outcome(request) == ForwardResult(choices, queue_us=1_500_000, compute_us=250_000)


def test_first_come_first_served() -> None:
    bench = Bench()
    for key in "abcd":
        bench.submit(key, 3)
    assert bench.scheduler.queue_length == 4
    assert bench.run() == ["a", "b", "c", "d"]


# Chunks


def test_a_long_text_is_cut_and_choices_come_with_the_chunks_that_hold_them() -> None:
    bench = Bench()
    request = bench.submit("a", 15, 6, branches=[(14, 7)])
    bench.run()
    assert [(chunk.end, chunk.num_choices) for chunk in bench.chunks] == [(4, 0), (8, 0), (12, 3), (15, 3)]
    result = bench.outcome(request)
    assert isinstance(result, ForwardResult)
    assert len(result.choices) == 7
    assert result.compute_us == 1_000_000


def test_a_cache_shortens_the_text_but_never_the_choices() -> None:
    bench = Bench(chunk_tokens=3)
    bench.caches.texts["a"] = tuple(range(9))
    bench.submit("a", 10, 1)
    bench.submit("a", 10, 5)
    bench.run()
    assert [(chunk.end, chunk.num_choices) for chunk in bench.chunks] == [(10, 1), (8, 3), (10, 2)]


def test_a_cached_prompt_is_answered_without_the_model() -> None:
    bench = Bench()
    bench.caches.texts["a"] = tuple(range(9))
    held, longer = bench.submit("a", 8, 0), bench.submit("a", 10, 0)
    assert bench.run() == ["a"]
    assert bench.outcome(held) == ForwardResult([], queue_us=0, compute_us=0, cached_tokens=8)
    assert bench.outcome(longer) == ForwardResult([], queue_us=0, compute_us=250_000, cached_tokens=9)


def test_texts_of_one_tenant_take_turns_by_chunks() -> None:
    """A text of forty tokens delays other requests by at most one chunk."""
    bench = Bench()
    long = bench.submit("long", 40)
    bench.step()
    spans = [bench.submit(key, 4) for key in "abc"]
    assert bench.run() == ["long", "long", "a", "b", "c", *["long"] * 8]
    waits = [outcome.queue_us for span in spans if isinstance(outcome := bench.outcome(span), ForwardResult)]
    assert waits == [250_000, 500_000, 750_000], "one chunk of the long text, and the spans before it"
    assert isinstance(bench.outcome(long), ForwardResult)


# Deadlines


def test_a_request_past_its_deadline_never_starts() -> None:
    bench = Bench()
    first, late = bench.submit("a", 3, deadline_ms=200), bench.submit("b", 3, deadline_ms=200)
    patient = bench.submit("c", 3, deadline_ms=600)
    assert bench.run() == ["a", "c"]
    assert isinstance(bench.outcome(first), ForwardResult), "a request that began in time is finished"
    assert isinstance(bench.outcome(patient), ForwardResult)
    error = bench.outcome(late)
    assert isinstance(error, CloudTimeout)
    assert error.message == "deadline: the request waited 250 ms in the queue and was not started"


def test_a_deadline_is_for_the_first_chunk() -> None:
    bench = Bench()
    request = bench.submit("a", 12, deadline_ms=100)
    bench.run()
    assert isinstance(bench.outcome(request), ForwardResult)


def test_a_caller_is_refused_at_its_deadline_and_only_then() -> None:
    bench = Bench()
    running, waiting = bench.submit("a", 12, deadline_ms=100), bench.submit("b", 3, deadline_ms=100)
    chunks = bench.start()
    assert bench.scheduler.expire(running, bench.now) == [], "the request has begun"
    [refusal] = bench.scheduler.expire(waiting, bench.now + 0.1)
    assert (refusal.request, type(refusal.outcome)) == (waiting, CloudTimeout)
    assert bench.scheduler.expire(waiting, bench.now + 0.1) == [], "it is refused once"
    bench.finish(chunks)
    assert bench.run() == ["a", "a", "a"]


# Cancellation


def test_a_request_cancelled_while_waiting_never_runs() -> None:
    bench = Bench()
    bench.submit("a", 3)
    bench.scheduler.cancel(bench.submit("b", 3))
    assert bench.scheduler.queue_length == 1
    assert bench.run() == ["a"]
    assert len(bench.answers) == 1


def test_a_cancelled_prompt_leaves_after_the_running_chunk() -> None:
    bench = Bench()
    prompt, other = bench.submit("prompt", 40, 0), bench.submit("a", 3)
    chunks = bench.start()
    bench.scheduler.cancel(prompt)
    bench.finish(chunks)
    assert bench.run() == ["prompt", "a"]
    assert [answer.request for answer in bench.answers] == [other]
    bench.scheduler.cancel(other)  # answered already, and no error


# Failures, overload and closing


def test_a_failure_reaches_its_own_caller() -> None:
    bench = Bench()
    broken, fine = bench.submit("a", 12), bench.submit("b", 3)
    error = RuntimeError("out of memory")
    bench.finish(bench.start(), error)
    bench.run()
    assert bench.outcome(broken) is error
    assert isinstance(bench.outcome(fine), ForwardResult)


def test_a_full_queue_refuses_with_a_retry_delay() -> None:
    bench = Bench(max_queue=2)
    bench.submit("a", 3)
    bench.submit("b", 3)
    with pytest.raises(Overloaded, match="queue: 2 requests are waiting, the limit is 2") as caught:
        bench.submit("c", 3)
    assert caught.value.retry_after_ms == 500, "no forward has been timed yet"
    bench.step()
    bench.submit("c", 3)
    bench.start()
    bench.submit("d", 3)
    with pytest.raises(Overloaded) as caught:
        bench.submit("e", 3)
    assert caught.value.retry_after_ms == 750, "two waiting and one running, 250 ms each"


def test_the_retry_delay_counts_on_forwards_that_serve_many() -> None:
    bench = Bench(max_queue=8, step_tokens=16, chunk_tokens=4)
    for key in "abcd":
        bench.submit(key, 4)
    bench.step()
    for key in "efghijkl":
        bench.submit(key, 4)
    with pytest.raises(Overloaded) as caught:
        bench.submit("m", 4)
    assert caught.value.retry_after_ms == 500, "eight are two forwards of four, 250 ms each"


def test_a_long_request_keeps_its_place_in_a_full_queue() -> None:
    bench = Bench(max_queue=1)
    long = bench.submit("a", 12)
    chunks = bench.start()
    bench.submit("b", 3)
    bench.finish(chunks)
    bench.run()
    assert isinstance(bench.outcome(long), ForwardResult)


def test_closing_refuses_waiting_requests_and_finishes_the_running_chunk() -> None:
    bench = Bench()
    long, waiting = bench.submit("a", 12), bench.submit("b", 3)
    chunks = bench.start()
    assert bench.scheduler.busy
    [refusal] = bench.scheduler.close()
    assert (refusal.request, type(refusal.outcome)) == (waiting, CloudUnavailable)
    bench.finish(chunks)
    assert isinstance(bench.outcome(long), CloudUnavailable)
    assert bench.start() == []
    with pytest.raises(CloudUnavailable, match="shutting down"):
        bench.submit("c", 3)


def test_impossible_requests_and_limits_are_refused() -> None:
    bench = Bench(context_tokens=4)
    for tokens, num_choices in ((0, 0), (2, 3), (2, -1)):
        with pytest.raises(ValueError, match=f"num_choices: {num_choices} for {tokens} tokens"):
            bench.submit("a", tokens, num_choices)
    with pytest.raises(ValueError, match="branches: 1 in a request without choices"):
        bench.submit("a", 2, 0, branches=[(1, 5)])
    with pytest.raises(PromptTooLong, match="5 tokens; the context holds 4"):
        bench.submit("a", 3, 1, branches=[(2, 5), (3, 5)])
    assert bench.scheduler.queue_length == 0
    with pytest.raises(ConfigError, match="max_queue: 0"):
        Bench(max_queue=0)
    with pytest.raises(ConfigError, match="chunk_tokens: 0"):
        Bench(chunk_tokens=0)


# Any workload


@given(data=st.data())
def test_every_uncancelled_request_is_answered_once(data: st.DataObject) -> None:
    bench = Bench(max_queue=99, chunk_tokens=data.draw(st.integers(1, 5)))
    requests: list[QueuedRequest] = []
    cancelled: list[QueuedRequest] = []
    for _ in range(data.draw(st.integers(1, 15))):
        match data.draw(st.sampled_from(["submit", "submit", "step", "evict", "cancel"])):
            case "submit":
                tokens = data.draw(st.integers(1, 12))
                deadline_ms = data.draw(st.sampled_from([None, 1, 600]))
                num_choices = data.draw(st.integers(0, tokens))
                requests.append(
                    bench.submit(data.draw(st.sampled_from("abc")), tokens, num_choices, deadline_ms=deadline_ms)
                )
            case "step":
                bench.step()
            case "evict":
                bench.caches.texts.clear()
            case "cancel" if requests:
                cancelled.append(data.draw(st.sampled_from(requests)))
                bench.scheduler.cancel(cancelled[-1])
            case _:
                pass
    bench.run()
    answered = [answer.request for answer in bench.answers]
    assert len(answered) == len({*answered})
    assert {*requests} - {*cancelled} <= {*answered} <= {*requests}
    for answer in bench.answers:
        if isinstance(answer.outcome, ForwardResult):
            assert len(answer.outcome.choices) == answer.request.num_choices
