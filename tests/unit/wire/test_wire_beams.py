"""Beams on the wire: they survive, they are small, and frames that break the specification are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common import wire
from chaperone_common.beams.draft_row import DraftRow
from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.forest import Draw, Forest
from chaperone_common.beams.frames import BeamSettings, BeamStep, BeamVerdict, ForestFrame, RunningBeam
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import Capabilities, FrameLimits, Open
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.types import SamplingParams, SessionId

U32 = st.integers(0, 2**32 - 1)
BYTE = st.integers(0, 255)
LOGPROB = st.floats(-9999, 0, width=32)
TOKENS = st.lists(U32, max_size=5).map(tuple)


@st.composite
def rows(draw: st.DrawFn) -> DraftRow:
    token_ids = draw(st.lists(U32, min_size=1, max_size=64, unique=True))
    return DraftRow(tuple(token_ids), draw(st.binary(min_size=len(token_ids), max_size=len(token_ids))))


FORESTS = st.builds(
    Forest,
    st.lists(rows(), max_size=6).map(tuple),
    st.lists(st.lists(st.builds(Draw, BYTE, BYTE), max_size=16).map(tuple), max_size=5).map(tuple),
    st.lists(U32, max_size=6).map(tuple),
)
COUNTS = st.lists(BYTE, max_size=16).map(tuple)
NUMBERS = st.lists(U32, max_size=16).map(tuple)
STEPS = st.lists(st.builds(BeamStep, U32, st.none() | U32, LOGPROB, LOGPROB), max_size=4).map(tuple)
RUNNING = st.lists(st.builds(RunningBeam, TOKENS, LOGPROB, LOGPROB), max_size=4).map(tuple)
FINISHED = st.lists(st.builds(Hypothesis, TOKENS, LOGPROB, st.just("stop")), max_size=4).map(tuple)


@given(frame=st.builds(ForestFrame, U32, FORESTS, NUMBERS, NUMBERS, st.integers(1, 2**32 - 1), U32))
def test_a_forest_survives(frame: ForestFrame) -> None:
    assert wire.decode_client(wire.encode_client(frame)) == frame


@given(verdict=st.builds(BeamVerdict, U32, STEPS, STEPS, U32, U32, U32, U32, COUNTS, COUNTS))
def test_a_verdict_survives(verdict: BeamVerdict) -> None:
    assert wire.decode_server(wire.encode_server(verdict)) == verdict


@given(
    settings=st.builds(
        BeamSettings,
        U32,
        st.none() | st.floats(allow_nan=False),
        st.integers(1, 2**32 - 1),
        st.booleans(),
        st.floats(allow_nan=False),
        st.booleans(),
        RUNNING,
        FINISHED,
        st.booleans(),
    )
)
def test_settings_survive(settings: BeamSettings) -> None:
    opening = Open(SessionId("s"), "d", SamplingParams(), 5, (), (1, 2), beams=settings)
    assert wire.decode_client(wire.encode_client(opening)) == opening


def test_capabilities_name_the_largest_number_of_beams() -> None:
    value = Capabilities(1, "m", "d", 5, 6, 7, max_beams=8)
    assert wire.decode_capabilities(wire.encode_capabilities(value)) == value


def test_four_layers_of_four_beams_take_less_than_three_kilobytes() -> None:
    """With rows of 32 tokens of a large vocabulary, as a flat law has them, and four running beams."""
    running = tuple(RunningBeam((150_000 + number,), -1.0, -1.0) for number in range(4))
    progress = BeamProgress(BeamSettings(4, running=running), 100, ())
    draft = ForestDraft(progress, 1000, width=4, row_tokens=32, temperature=1.0, seed=3)
    rng = np.random.default_rng(1)
    for _ in range(4):
        laws = [rng.dirichlet(np.ones(152_000) * 0.01) for _ in draft.growing]
        draft.grow([np.roll(law, 100_000) for law in laws])
    forest = draft.forest()
    assert len(forest.rows) == 16
    assert all(len(row) == 32 for row in forest.rows)
    assert len(wire.encode_client(ForestFrame(1000, forest, deadline_ms=5000))) < 3000


def _message() -> pb.SuperviseRequest:
    forest = Forest((DraftRow((5, 6), b"\0\1"), DraftRow((7,), b"\0")), ((Draw(0, 0), Draw(0, 1)),))
    return pb.SuperviseRequest.FromString(wire.encode_client(ForestFrame(1, forest)))


def _missing_token(message: pb.Forest) -> None:
    del message.token_ids[-1]


def _missing_step(message: pb.Forest) -> None:
    message.steps = message.steps[:-1]


def _missing_draw(message: pb.Forest) -> None:
    message.draws = message.draws[:-1]


def _empty_row(message: pb.Forest) -> None:
    message.row_lengths = b"\3\0"


def _same_token_twice(message: pb.Forest) -> None:
    message.token_ids[1] = message.token_ids[0]


def _many_layers(message: pb.Forest) -> None:
    message.layer_draws = b"\0" * 17
    message.draws = b""


def _many_rows(message: pb.Forest) -> None:
    message.row_lengths = b"\1" * 300


def _many_dropped(message: pb.Forest) -> None:
    message.dropped.extend(range(33))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_missing_token, "row_lengths: 2 rows of 3 tokens, and there are 2"),
        (_missing_step, "steps: 2 bytes for 3 tokens"),
        (_missing_draw, "draws: 3 bytes for 2 draws in 1 layers"),
        (_empty_row, "forest: row: 0 tokens"),
        (_same_token_twice, "forest: row: a token is there twice"),
        (_many_layers, "in 17 layers; send two for each draw, and up to 16 layers"),
        (_many_rows, "row_lengths: 300 rows"),
        (_many_dropped, "dropped: 33"),
    ],
)
def test_a_broken_forest_is_refused(change: Callable[[pb.Forest], None], text: str) -> None:
    message = _message()
    change(message.forest)
    with pytest.raises(ProtocolViolation, match=text):
        wire.decode_client(message.SerializeToString())


def test_a_huge_forest_is_refused_before_it_is_parsed() -> None:
    message = _message()
    message.forest.steps = b"\0" * (1 << 17)
    with pytest.raises(InvalidRequest, match="forest: .* bytes, at most 131072 are allowed; draft fewer beams"):
        wire.decode_client(message.SerializeToString())


def test_too_many_beams_are_refused() -> None:
    step = BeamStep(0, 1, -1.0, -1.0)
    with pytest.raises(ProtocolViolation, match="running: 33 beams"):
        wire.decode_server(wire.encode_server(BeamVerdict(0, (step,) * 33, ())))
    beam = RunningBeam((1,) * 20, -1.0, -1.0)
    opening = Open(SessionId("s"), "d", SamplingParams(), 5, (), (1, 2), beams=BeamSettings(8, running=(beam,) * 17))
    with pytest.raises(InvalidRequest, match="beams.running: 17 ids, at most 16 allowed; resume from fewer beams"):
        wire.decode_client(wire.encode_client(opening))


def test_each_text_of_a_resumed_generation_is_bounded_and_all_are_as_one_message() -> None:
    beam, whole = RunningBeam((1,) * 90, -1.0, -1.0), Hypothesis((1,) * 91, -1.0, "stop")
    settings = BeamSettings(8, running=(beam,) * 8, finished=(whole,) * 8)
    opening = Open(SessionId("s"), "d", SamplingParams(), 5, (), (1, 2), beams=settings)
    data = wire.encode_client(opening)
    assert wire.decode_client(data, FrameLimits(max_text_tokens=91)) == opening
    with pytest.raises(InvalidRequest, match="beams.finished: 91 ids, at most 90 allowed; resume from less text"):
        wire.decode_client(data, FrameLimits(max_text_tokens=90))
    with pytest.raises(InvalidRequest, match="beams.running: 90 ids, at most 89 allowed; resume from less text"):
        wire.decode_client(data, FrameLimits(max_text_tokens=89))
    with pytest.raises(InvalidRequest, match="frame: .* bytes, at most 1024 are allowed"):
        wire.decode_client(data, FrameLimits(max_message_bytes=1024, max_text_tokens=91))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
def test_a_log_probability_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ProtocolViolation, match="not finite; use another cloud"):
        wire.decode_server(wire.encode_server(BeamVerdict(0, (BeamStep(0, 1, value, -1.0),), ())))
