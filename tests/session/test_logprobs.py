"""Log-probabilities: each final token has one entry, of the model that vouches for it, whatever the order of frames."""

from __future__ import annotations

from random import Random

import pytest

from chaperone_common import wire
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import Continuation, Open, Verdict
from chaperone_common.logprobs import ChoiceLogprobs, LogprobSource
from chaperone_common.session import CloudSession, Committed, DeviceSession
from chaperone_common.types import Mode, OnDeviation, Origin, Proposal, SamplingParams, SessionId
from edge_client.planner import FixedPlanner
from tests.support.session.pair import EOS, PROMPT, SIGNAL, VOCABULARY, Models, Pair, RandomPlanner

OPENING = Open(SessionId("s"), "", SamplingParams(), 8, (EOS,), PROMPT, top_logprobs=1)
OWN = ChoiceLogprobs(-0.5, ((4, -0.25),))


@pytest.mark.parametrize("on_deviation", OnDeviation)
@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED])
@pytest.mark.parametrize("seed", range(40))
def test_each_final_token_has_the_entry_of_its_own_text_and_model(
    seed: int, mode: Mode, on_deviation: OnDeviation
) -> None:
    """The values are a hash of the text before the token and of the model, so that no other entry can pass."""
    random = Random(seed)
    pair = Pair(
        Models(seed, ending=200),
        mode,
        RandomPlanner(random, run_ahead_tokens=12),
        random,
        continuation_tokens=seed % 4,
        branch_tokens=seed % 5,
        resets=seed % 3,
        on_deviation=on_deviation,
        top_logprobs=2,
    )
    pair.run()
    assert [event.position for event in pair.committed] == [*range(len(PROMPT), pair.device.final_length)]
    for event in pair.committed:
        source = LogprobSource.CLOUD if event.origin.judged else LogprobSource.DEVICE
        before = pair.device.text[: event.position]
        expected = pair.models.logprobs(before, event.token_id, str(source))
        assert event.logprobs is not None
        assert event.logprobs.source is source
        assert event.logprobs.chosen.token_id == event.token_id
        assert event.logprobs.chosen.logprob == expected.logprob
        assert [(each.token_id, each.logprob) for each in event.logprobs.top_logprobs] == [*expected.top]


def test_nothing_is_reported_unless_it_is_wanted() -> None:
    pair = Pair(Models(1), Mode.GATED, FixedPlanner(Mode.GATED, 4, 2, 12, 2), Random(1))
    pair.run()
    assert all(event.logprobs is None for event in pair.committed)


def test_a_token_of_the_lost_cloud_is_the_devices() -> None:
    device = DeviceSession(OPENING, limit=11)
    device.draft(Proposal(5, SIGNAL, 6, logprobs=OWN), fires=True)
    (event,) = device.lose_cloud()
    assert isinstance(event, Committed)
    assert event.origin is Origin.UNVERIFIED
    assert event.logprobs is not None
    assert (event.logprobs.chosen.logprob, event.logprobs.source) == (-0.5, LogprobSource.DEVICE)


def test_a_cloud_that_reports_none_is_refused() -> None:
    device = DeviceSession(OPENING, limit=11)
    device.send()
    with pytest.raises(ProtocolViolation, match=r"logprobs: the cloud sent none for its token at 3; update the cloud"):
        device.apply(Verdict(0, 3, 7))


def test_a_cloud_that_reports_more_than_wanted_is_refused() -> None:
    device = DeviceSession(OPENING, limit=11)
    device.send()
    with pytest.raises(ProtocolViolation, match=r"logprobs: 2 likeliest tokens, 1 were wanted"):
        device.apply(Verdict(0, 3, 7, logprobs=(ChoiceLogprobs(-1.0, ((7, -1.0), (8, -2.0))),)))


def test_an_unknown_likeliest_token_is_refused() -> None:
    device = DeviceSession(OPENING, limit=11, vocabulary_size=VOCABULARY)
    device.send()
    with pytest.raises(ProtocolViolation, match=rf"token_ids: {VOCABULARY} is not in a vocabulary of {VOCABULARY}"):
        device.apply(Verdict(0, 3, 7, logprobs=(ChoiceLogprobs(-1.0, ((VOCABULARY, -1.0),)),)))


def test_a_drafter_that_reports_none_is_named() -> None:
    device = DeviceSession(OPENING, limit=11)
    with pytest.raises(InvalidRequest, match="logprobs: this drafter reports none"):
        device.draft(Proposal(5, SIGNAL, 6), fires=False)


def test_a_cloud_refuses_more_likeliest_tokens_than_it_reports() -> None:
    opening = Open(SessionId("s"), "", SamplingParams(), 8, (EOS,), PROMPT, top_logprobs=21)
    with pytest.raises(InvalidRequest, match=r"top_logprobs: 21 is outside \[0, 20\]"):
        CloudSession(opening, context_tokens=100, vocabulary_size=VOCABULARY)


@pytest.mark.parametrize("top_logprobs", [None, 0, 20])
def test_an_open_says_how_many_are_wanted(top_logprobs: int | None) -> None:
    opening = Open(SessionId("s"), "", SamplingParams(), 8, (EOS,), PROMPT, top_logprobs=top_logprobs)
    assert wire.decode_client(wire.encode_client(opening)) == opening


@pytest.mark.parametrize("entries", [(), (ChoiceLogprobs(-0.5),), (OWN, OWN)])
def test_answers_carry_entries(entries: tuple[ChoiceLogprobs, ...]) -> None:
    verdict = Verdict(0, 3, 7, further_token_ids=(4,), logprobs=entries)
    assert wire.decode_server(wire.encode_server(verdict)) == verdict
    written = Continuation(3, (7, 4), False, logprobs=entries)
    assert wire.decode_server(wire.encode_server(written)) == written


@pytest.mark.parametrize(
    "entries",
    [
        (ChoiceLogprobs(0.5),),
        (ChoiceLogprobs(float("nan")),),
        (ChoiceLogprobs(-1.0, ((4, float("-inf")),)),),
        (ChoiceLogprobs(-1.0, ((4, -1.0),) * 21),),
        (OWN, ChoiceLogprobs(-1.0)),
        (OWN,) * 3,
    ],
)
def test_impossible_entries_are_refused(entries: tuple[ChoiceLogprobs, ...]) -> None:
    with pytest.raises(ProtocolViolation, match="logprobs: "):
        wire.decode_server(wire.encode_server(Continuation(3, (7, 4), False, logprobs=entries)))


def test_an_entry_costs_few_bytes() -> None:
    """Four for the token, and a token id and four more for each of the likeliest ones."""
    entry = ChoiceLogprobs(-0.5, tuple((150_000 + index, -1.0) for index in range(5)))
    plain, longer = (len(wire.encode_server(Verdict(3, 1500, 150_000, logprobs=(entry,) * n))) for n in (0, 8))
    assert longer - plain <= 8 * (4 + 5 * (4 + 3)) + 20
