"""Both ends agree on one text, for any delays of the wire and any drafts of the device."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.session import Audited, Committed, Drafted, Retracted
from chaperone_common.types import FinishReason, Mode, OnDeviation, Origin
from edge_client.planner import FixedPlanner
from tests.support.session.pair import EOS, PROMPT, Models, Pair, RandomPlanner, cloud_text

CLOUDS_OWN = {Origin.VERIFIED, Origin.OVERRIDE, Origin.BONUS, Origin.TAKEOVER}


@st.composite
def pairs(draw: st.DrawFn, mode: Mode, *, resets: bool = False) -> Pair:
    models = Models(draw(st.integers(0, 2**32)), draw(st.integers(0, 100)), draw(st.integers(5, 200)))
    planner: FixedPlanner | RandomPlanner = FixedPlanner(
        mode,
        span_tokens=draw(st.integers(1, 9)),
        spans_in_flight=draw(st.integers(1, 4)),
        run_ahead_tokens=draw(st.integers(10, 40)),
    )
    if mode is not Mode.CLOUD and draw(st.booleans()):
        planner = RandomPlanner(Random(draw(st.integers(0, 2**32))), draw(st.integers(3, 25)))
    max_new_tokens = draw(st.integers(1, 60))
    resumed = cloud_text(models, PROMPT, len(PROMPT) + draw(st.integers(0, 5)))[len(PROMPT) :] if resets else []
    if len(resumed) >= max_new_tokens or EOS in resumed:
        resumed = []
    return Pair(
        models,
        mode,
        planner,
        Random(draw(st.integers(0, 2**32))),
        max_new_tokens=max_new_tokens,
        continuation_tokens=draw(st.sampled_from([0, 0, 1, 5, 100])),
        max_span_tokens=draw(st.sampled_from([None, None, 3])) if mode is Mode.GATED else None,
        resumed=tuple(resumed),
        resets=draw(st.integers(1, 6)) if resets else 0,
        reset_odds=draw(st.sampled_from([3, 10, 30])) if resets else 1,
        deadlines_ms=draw(st.sampled_from([(0,), (60_000,), (300_000, 60_000, 60_000)])),
        branch_tokens=draw(st.sampled_from([0, 1, 4, 12])),
    )


@settings(max_examples=400)
@given(pair=pairs(Mode.EXACT))
def test_exact_commits_the_cloud_only_text(pair: Pair) -> None:
    pair.run()
    expected = cloud_text(pair.models, PROMPT, pair.limit)
    assert [*PROMPT, *(event.token_id for event in pair.committed)] == expected
    assert pair.device.finish_reason is (FinishReason.STOP if expected[-1] == EOS else FinishReason.LENGTH)
    assert {event.origin for event in pair.committed} <= CLOUDS_OWN
    tally = pair.device.tally
    own = tally.verified_tokens + tally.overridden_tokens + tally.bonus_tokens + tally.takeover_tokens
    assert own == len(pair.committed)
    assert pair.device.tally.deviations == 0
    assert not any(frame.risks for frame in pair.drafts), "the gate skips no token"
    assert not pair.up
    assert not pair.down


@settings(max_examples=400)
@given(pair=pairs(Mode.GATED))
def test_gated_counts_every_deviation_and_no_other(pair: Pair) -> None:
    pair.run()
    text = [*PROMPT, *(event.token_id for event in pair.committed)]
    differing = [event for event in pair.committed if pair.models.cloud(text[: event.position]) != event.token_id]
    assert all(event.origin is Origin.DRAFT for event in differing)
    assert pair.device.tally.deviations == len(differing)
    assert pair.device.tally.audited_tokens == pair.device.tally.skipped_tokens
    unasked = [text[: event.position] for event in pair.committed if event.origin is Origin.DRAFT]
    assert not any(pair.models.doubts(before) for before in unasked), "every fired token is judged"
    skips = [frame for frame in pair.drafts if frame.final_before > frame.start]
    assert all(len(frame.risks) == len(frame.token_ids) for frame in skips)


@settings(max_examples=400)
@given(pair=st.booleans().flatmap(lambda resets: pairs(Mode.GATED, resets=resets)))
def test_a_gated_text_is_the_cloud_only_text_or_reports_its_first_other_token(pair: Pair) -> None:
    """So a text with 0 deviations is the cloud's own. Later deviations are relative to the text before them."""
    pair.run()
    text = [*PROMPT, *pair.resumed, *(event.token_id for event in pair.committed)]
    expected = cloud_text(pair.models, PROMPT, pair.limit)
    audits = [event for event in pair.events if isinstance(event, Audited)]
    reported = sorted(position for audit in audits for position in audit.deviations)
    other = [position for position, (own, cloud) in enumerate(zip(text, expected, strict=False)) if own != cloud]
    assert reported[:1] == other[:1]
    assert other or text == expected
    assert pair.device.tally.deviations == len(reported)


@settings(max_examples=200)
@given(pair=pairs(Mode.GATED, resets=True))
def test_gated_with_retracted_deviations_commits_the_cloud_only_text(pair: Pair) -> None:
    """The gate then decides only the time of a request; a text without requests is read at its end."""
    kept = pair
    pair = Pair(
        kept.models,
        Mode.GATED,
        kept.planner,
        kept.random,
        max_new_tokens=kept.max_new_tokens,
        continuation_tokens=kept.continuation_tokens,
        max_span_tokens=kept.max_span_tokens,
        resets=kept.resets,
        reset_odds=kept.reset_odds,
        on_deviation=OnDeviation.RETRACT,
    )
    pair.run()
    assert [*PROMPT, *(event.token_id for event in pair.committed)] == cloud_text(pair.models, PROMPT, pair.limit)
    assert pair.device.tally.skipped_tokens == pair.device.tally.deviations == 0


@settings(max_examples=100)
@given(pair=pairs(Mode.CLOUD))
def test_cloud_mode_is_one_takeover(pair: Pair) -> None:
    pair.run()
    assert [*PROMPT, *(event.token_id for event in pair.committed)] == cloud_text(pair.models, PROMPT, pair.limit)
    assert pair.device.tally.requests == 1


@settings(max_examples=100)
@given(pair=pairs(Mode.GATED))
def test_events_are_enough_to_rebuild_the_text(pair: Pair) -> None:
    """Replaying drafted, retracted and committed tokens gives the device's text, and final tokens never change."""
    pair.run()
    text, final, audited = list(PROMPT), len(PROMPT), len(PROMPT)
    for event in pair.events:
        match event:
            case Drafted():
                assert event.position == len(text)
                text.append(event.token_id)
            case Retracted():
                assert event.position >= final
                del text[event.position :]
            case Committed():
                assert event.position == final
                if event.position == len(text):
                    text.append(event.token_id)
                assert text[event.position] == event.token_id
                final += 1
            case Audited(start, end, deviations):
                assert audited <= start < end <= final, "each token once, and only final ones"
                assert all(start <= position < end for position in deviations)
                audited = end
    assert text[:final] == pair.device.text[: pair.device.final_length]


def test_the_wire_exercises_every_fault() -> None:
    stale = in_flight = 0
    for seed in range(200):
        planner = FixedPlanner(Mode.EXACT, span_tokens=4, spans_in_flight=3, run_ahead_tokens=30)
        pair = Pair(Models(seed), Mode.EXACT, planner, Random(seed))
        pair.run()
        stale += pair.cloud.stale_frames
        in_flight += pair.most_in_flight >= 2
    assert stale >= 10
    assert in_flight >= 10


def test_the_branches_exercise_every_foreseen_case() -> None:
    further = overtaken = 0
    for seed in range(100):
        planner = FixedPlanner(Mode.EXACT, span_tokens=1, spans_in_flight=4, run_ahead_tokens=30)
        pair = Pair(Models(seed), Mode.EXACT, planner, Random(seed), branch_tokens=9)
        pair.run()
        further += pair.further_tokens
        overtaken += pair.overtaken_spans
    assert further >= 100
    assert overtaken >= 10


@settings(max_examples=100)
@given(pair=pairs(Mode.GATED))
def test_caught_tokens_are_the_replaced_drafts(pair: Pair) -> None:
    pair.run()
    gave_way = sum(
        isinstance(before, Retracted) and isinstance(after, Committed) and before.position == after.position
        for before, after in pairwise(pair.events)
    )
    assert pair.device.tally.caught == gave_way


# The stream is cut


@settings(max_examples=500)
@given(pair=pairs(Mode.EXACT, resets=True))
def test_exact_commits_the_cloud_only_text_over_any_number_of_cuts(pair: Pair) -> None:
    pair.run()
    expected = cloud_text(pair.models, PROMPT, pair.limit)
    assert [*PROMPT, *pair.resumed, *(event.token_id for event in pair.committed)] == expected
    assert {event.origin for event in pair.committed} <= CLOUDS_OWN
    assert pair.device.tally.deviations == 0
    assert not pair.audits


@settings(max_examples=500)
@given(pair=pairs(Mode.GATED, resets=True))
def test_gated_audits_every_skipped_token_once_over_any_number_of_cuts(pair: Pair) -> None:
    pair.run()
    text = [*PROMPT, *pair.resumed, *(event.token_id for event in pair.committed)]
    assert text == pair.device.text[: pair.device.final_length]
    skipped = [event.position for event in pair.committed if event.origin is Origin.DRAFT]
    assert pair.audits == Counter(skipped), "each of them once, and no others"
    deviating = [event for event in pair.committed if pair.models.cloud(text[: event.position]) != event.token_id]
    assert all(event.origin is Origin.DRAFT for event in deviating)
    assert pair.device.tally.deviations == len(deviating)
    tally = pair.device.tally
    by_origin = Counter(event.origin for event in pair.committed)
    assert tally.skipped_tokens == by_origin[Origin.DRAFT]
    assert tally.verified_tokens == by_origin[Origin.VERIFIED]
    assert tally.takeover_tokens == by_origin[Origin.TAKEOVER]
    assert tally.fired <= sum(isinstance(event, Drafted) for event in pair.events)


@settings(max_examples=100)
@given(pair=pairs(Mode.CLOUD, resets=True))
def test_cloud_mode_resumes_an_interrupted_takeover(pair: Pair) -> None:
    pair.run()
    text = [*PROMPT, *pair.resumed, *(event.token_id for event in pair.committed)]
    assert text == cloud_text(pair.models, PROMPT, pair.limit)


def test_the_cuts_exercise_every_kind_of_loss() -> None:
    lost = reconnects = cut_takeovers = 0
    for seed in range(200):
        planner = FixedPlanner(Mode.GATED, span_tokens=2, spans_in_flight=3, run_ahead_tokens=30)
        pair = Pair(Models(seed), Mode.GATED, planner, Random(seed), continuation_tokens=9, resets=4, reset_odds=10)
        pair.run()
        lost += pair.lost_verdicts
        reconnects += pair.device.tally.reconnects
        cut_takeovers += pair.cut_takeovers
    assert min(lost, reconnects, cut_takeovers) >= 10
