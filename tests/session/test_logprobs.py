"""Log-probabilities: each final token has one entry, of the model that vouches for it, whatever the order of frames."""

from __future__ import annotations

from random import Random

import pytest

from chaperone_common import wire
from chaperone_common.errors import ChaperoneError, InvalidRequest, ProtocolViolation, VersionMismatch
from chaperone_common.frames import Continuation, Draft, Open, ServerFrame, Verdict
from chaperone_common.logprobs import ChoiceLogprobs, LogprobSource
from chaperone_common.session import CloudSession, Committed, DeviceSession, State
from chaperone_common.token_tree import BranchToken
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


def asking(*, fired: int, continuation_tokens: int = 0) -> DeviceSession:
    """Return a device that has asked the cloud about some tokens."""
    device = DeviceSession(OPENING, limit=11, vocabulary_size=VOCABULARY)
    for token_id in range(1, fired + 1):
        device.draft(Proposal(token_id, SIGNAL, 6, logprobs=OWN), fires=True)
    device.send(continuation_tokens=continuation_tokens)
    return device


def state_of(device: DeviceSession) -> tuple[object, ...]:
    lengths = (device.final_length, device.read_length, device.sent_length, device.revision)
    return (*lengths, [*device.text], [*device.spans], device.finish_reason, repr(device.tally))


def refusal(device: DeviceSession, frame: ServerFrame) -> ChaperoneError:
    """Return the error of an answer that is refused, and check that nothing of it was applied."""
    before = state_of(device)
    with pytest.raises(ChaperoneError) as refused:
        device.apply(frame)
    assert state_of(device) == before
    return refused.value


@pytest.mark.parametrize(("fired", "position"), [(0, 3), (3, 6), (3, 4)])
def test_a_cloud_that_reports_none_is_refused_before_a_token_is_final(fired: int, position: int) -> None:
    device = asking(fired=fired)
    error = refusal(device, Verdict(int(position < 3 + fired), position, 9))
    assert isinstance(error, VersionMismatch)
    assert error.message == "logprobs: the cloud sent none for its token at 3; update the cloud"
    assert device.state is State.FAILED


def test_a_text_goes_on_alone_after_a_cloud_that_reports_none() -> None:
    device = asking(fired=2)
    refusal(device, Verdict(0, 5, 9))
    events = [*device.lose_cloud(), *device.draft(Proposal(8, SIGNAL, 6, logprobs=OWN), fires=False)]
    final = [event for event in events if isinstance(event, Committed)]
    assert [(event.position, event.token_id) for event in final] == [(3, 1), (4, 2), (5, 8)]
    assert {event.logprobs.source for event in final if event.logprobs is not None} == {LogprobSource.DEVICE}


def test_a_cloud_that_leaves_entries_out_is_refused_before_a_token_is_final() -> None:
    error = refusal(asking(fired=3), Verdict(0, 6, 9, logprobs=(OWN, OWN)))
    assert isinstance(error, ProtocolViolation)
    assert error.message == "logprobs: the cloud sent 2, and none for its token at 3; use another cloud"


@pytest.mark.parametrize(("entries", "kind"), [((), VersionMismatch), ((OWN,), ProtocolViolation)])
def test_a_takeover_without_entries_is_refused_before_a_token_is_final(
    entries: tuple[ChoiceLogprobs, ...], kind: type[ChaperoneError]
) -> None:
    device = asking(fired=0, continuation_tokens=4)
    device.apply(Verdict(0, 3, 7, logprobs=(OWN,)))
    assert device.following
    error = refusal(device, Continuation(4, (7, 4), True, logprobs=entries))
    assert type(error) is kind
    assert "logprobs: the cloud sent " in error.message


@pytest.mark.parametrize("count", [0, 2])
def test_a_cloud_that_reports_another_number_of_likeliest_tokens_is_refused(count: int) -> None:
    found = ChoiceLogprobs(-1.0, ((7, -1.0), (8, -2.0))[:count])
    error = refusal(asking(fired=0), Verdict(0, 3, 7, logprobs=(found,)))
    assert isinstance(error, ProtocolViolation)
    assert error.message == f"logprobs: {count} likeliest tokens, 1 were wanted; use another cloud"


def test_a_small_vocabulary_is_reported_whole() -> None:
    opening = Open(SessionId("s"), "", SamplingParams(), 8, (EOS,), PROMPT, top_logprobs=20)
    device = DeviceSession(opening, limit=11, vocabulary_size=10)
    device.send()
    every = tuple((token_id, -1.0) for token_id in range(10))
    (event,) = device.apply(Verdict(0, 3, 7, logprobs=(ChoiceLogprobs(-1.0, every),)))
    assert isinstance(event, Committed)
    assert event.logprobs is not None
    assert len(event.logprobs.top_logprobs) == 10


def test_an_unknown_likeliest_token_is_refused() -> None:
    error = refusal(asking(fired=0), Verdict(0, 3, 7, logprobs=(ChoiceLogprobs(-1.0, ((VOCABULARY, -1.0),)),)))
    assert isinstance(error, ProtocolViolation)
    assert error.message == (
        f"logprobs: the likeliest token {VOCABULARY} is not in a vocabulary of {VOCABULARY}; use another cloud"
    )


@pytest.mark.parametrize("fires", [False, True])
def test_a_drafter_that_reports_none_is_named_at_its_first_token(fires: bool) -> None:
    device = DeviceSession(OPENING, limit=11)
    before = state_of(device)
    with pytest.raises(InvalidRequest, match="logprobs: this drafter reports none"):
        device.draft(Proposal(5, SIGNAL, 6), fires=fires)
    assert state_of(device) == before


@pytest.mark.parametrize(
    ("tokens", "final_tokens", "first_reported"),
    [(16, 15, 15), (4, 0, 0), (4, 4, 4), (4, 5, 5), (0, 0, 0), (0, 1, 1), (20, 20, 20), (20, 21, 20)],
)
def test_only_choices_whose_tokens_are_not_final_are_measured(
    tokens: int, final_tokens: int, first_reported: int
) -> None:
    """Log-probabilities cost the cloud far more than choices, and audited tokens have none."""
    opening = Open(SessionId("s"), "", SamplingParams(), 20, (EOS,), PROMPT, top_logprobs=1)
    cloud = CloudSession(opening, context_tokens=100, vocabulary_size=VOCABULARY)
    start = len(PROMPT)
    request = cloud.receive(Draft(0, start, tuple(range(1, tokens + 1)), (), start + final_tokens))
    assert request is not None
    assert request.first_reported == first_reported
    verdict = cloud.answer(request, [5] * request.num_choices, logprobs=[OWN] * (request.num_choices - first_reported))
    assert isinstance(verdict, Verdict)
    final_before = start + final_tokens
    assert len(verdict.logprobs) == max(0, verdict.position + 1 - final_before)


def test_branches_next_to_audited_tokens_keep_their_entries() -> None:
    cloud = CloudSession(OPENING, context_tokens=100, vocabulary_size=VOCABULARY)
    request = cloud.receive(Draft(0, 3, (1, 2, 4), (), 5, branches=(BranchToken(4, 6), BranchToken(6, 8))))
    assert request is not None
    entries = [ChoiceLogprobs(-float(index)) for index in range(4)]  # two along the chain, two after branch tokens
    verdict = cloud.answer(request, [1, 3, 6, 9, 7, 5], logprobs=entries)
    assert isinstance(verdict, Verdict)
    assert (verdict.position, verdict.token_id, verdict.further_token_ids) == (5, 6, (7,))
    assert verdict.logprobs == (entries[0], entries[2])


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
    with pytest.raises(ProtocolViolation, match="logprobs: .*; use another cloud"):
        wire.decode_server(wire.encode_server(Continuation(3, (7, 4), False, logprobs=entries)))


def test_an_entry_costs_few_bytes() -> None:
    """Four for the token, and a token id and four more for each of the likeliest ones."""
    entry = ChoiceLogprobs(-0.5, tuple((150_000 + index, -1.0) for index in range(5)))
    plain, longer = (len(wire.encode_server(Verdict(3, 1500, 150_000, logprobs=(entry,) * n))) for n in (0, 8))
    assert longer - plain <= 8 * (4 + 5 * (4 + 3)) + 20
