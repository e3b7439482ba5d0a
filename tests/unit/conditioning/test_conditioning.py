"""The encoding of a prompt: its rows arrive in order, whole and untouched, or the stream fails."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from chaperone_common.conditioning import Encoding
from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Encoded, EncodingRequest
from chaperone_common.planning.costs import Costs
from edge_client.engine.conditioning import Conditioning, Wish
from edge_client.model.encodings import Encodings
from edge_client.planner.rereading import worth_reading_again
from tests.support.cloud.raw_stream import opening

WIDTH, LENGTH = 4, 7


def rows(start: int, end: int, seed: int = 0) -> Encoding:
    whole = np.random.default_rng(seed).normal(size=(LENGTH + 3, WIDTH)).astype(np.float32)
    return Encoding.of(whole[start:end], start)


class Collected:
    """A conditioning, what it keeps, and what it gives to the model."""

    def __init__(self, held: int = 0) -> None:
        self.kept: list[Encoding] = []
        self.applied: list[Encoding] = []
        start = rows(0, held) if held else Encoding.empty(WIDTH)
        wish = Wish(LENGTH, start, EncodingRequest("sha256:p", held), keep=self.kept.append)
        self.conditioning = Conditioning(wish, self.applied.append)


@pytest.mark.parametrize("held", [0, 3])
def test_rows_in_pieces_become_one_encoding(held: int) -> None:
    collected = Collected(held)
    conditioning = collected.conditioning
    assert conditioning.request == EncodingRequest("sha256:p", held)
    assert conditioning.used_tokens == held
    conditioning.receive(Encoded(rows(held, 5)))
    assert not conditioning.arrived
    with pytest.raises(ProtocolViolation, match="rows of its encoding are missing"):
        conditioning.check_whole()
    conditioning.receive(Encoded(rows(5, LENGTH), rows(held, LENGTH).digest()))
    conditioning.check_whole()
    assert conditioning.arrived
    assert conditioning.request is None  # a later stream asks for nothing
    assert collected.kept == [rows(0, LENGTH)]
    conditioning.take_up()
    assert collected.applied == [rows(0, LENGTH)]
    assert conditioning.used_tokens == LENGTH
    assert not conditioning.arrived


def test_another_stream_brings_all_rows_again() -> None:
    collected = Collected()
    collected.conditioning.receive(Encoded(rows(0, 5)))
    collected.conditioning.restart()
    collected.conditioning.receive(Encoded(rows(0, LENGTH), rows(0, LENGTH).digest()))
    collected.conditioning.restart()  # whole already: nothing is forgotten
    assert collected.conditioning.arrived


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (Encoded(rows(1, 3)), r"rows \[1, 3\) of width 4, not from 0 to at most 7"),
        (Encoded(rows(0, LENGTH + 1)), r"rows \[0, 8\) of width 4"),
        (Encoded(replace(rows(0, 2), values=np.zeros((2, 5), np.int8))), r"rows \[0, 2\) of width 5.*of width 4"),
        (Encoded(rows(0, LENGTH)), "digest '' is not that of the rows"),
        (Encoded(rows(0, LENGTH), rows(0, LENGTH, seed=1).digest()), "is not that of the rows"),
    ],
)
def test_rows_that_are_not_next_or_not_those_of_the_digest_are_refused(frame: Encoded, problem: str) -> None:
    with pytest.raises(ProtocolViolation, match=problem):
        Collected().conditioning.receive(frame)


def test_a_device_that_writes_alone_sends_its_prompt_and_nothing_of_its_text() -> None:
    request = EncodingRequest("sha256:p", 0)
    frame = opening("sha256:t", prompt=(1,) * LENGTH, committed_token_ids=(8, 9), top_logprobs=3)
    alone = Conditioning(Wish(LENGTH, Encoding.empty(WIDTH), request), lambda encoding: None).opening(frame)
    assert alone == replace(frame, encoding=request, committed_token_ids=(), max_new_tokens=1, top_logprobs=None)
    wish = Wish(LENGTH, Encoding.empty(WIDTH), request, needed=False)
    assert Conditioning(wish, lambda encoding: None).opening(frame) == replace(frame, encoding=request)
    assert Conditioning(None, lambda encoding: None).opening(frame) == frame


def test_rows_that_nobody_asked_for_are_refused() -> None:
    nothing = Conditioning(None, lambda encoding: None)
    with pytest.raises(ProtocolViolation, match="not asked for"):
        nothing.receive(Encoded(rows(0, 2)))
    assert not nothing.arrived
    assert nothing.request is None
    held = Conditioning(Wish(LENGTH, rows(0, LENGTH), None), lambda encoding: None)
    assert held.used_tokens == LENGTH
    with pytest.raises(ProtocolViolation, match="not asked for"):
        held.receive(Encoded(rows(0, 2)))


def test_the_text_is_read_again_only_where_that_saves_time() -> None:
    costs = Costs(draft_ms=20.0, rtt_ms=100.0, read_base_ms=60.0, read_token_ms=0.0)
    # An override costs 160 ms; 0.01 of 100 tokens are 160 ms in all. Reading 24 tokens takes 160 ms.
    assert worth_reading_again(0.01, 100, 23, costs)
    assert not worth_reading_again(0.01, 100, 25, costs)
    assert not worth_reading_again(0.0, 100, 0, costs)
    assert worth_reading_again(math.inf, 1, 10_000, costs)
    assert not worth_reading_again(math.inf, 0, 0, costs)


def test_prompts_that_begin_alike_share_rows() -> None:
    kept = Encodings(WIDTH, 1 << 20)
    assert len(kept.longest([1, 2, 3])) == 0
    assert kept.longest([1]).width == WIDTH
    kept.keep([1, 2, 3, 4], rows(0, 4))
    assert kept.longest([1, 2, 3, 4, 5]) == rows(0, 4)
    assert kept.longest([1, 2, 9]) == rows(0, 2)
    assert len(kept.longest([9, 2])) == 0
    kept.keep([1, 2, 3, 4, 5, 6], rows(0, 6))  # a later turn, in place of the earlier one
    assert kept.longest([1, 2, 3, 4, 5, 6, 7]) == rows(0, 6)


def test_the_encodings_stay_within_their_budget_and_the_oldest_goes() -> None:
    each = rows(0, 4).nbytes
    kept = Encodings(WIDTH, 2 * each)
    for first in (1, 2, 3):
        kept.keep([first, 0, 0, 0], rows(0, 4))
    assert [len(kept.longest([first, 0, 0, 0])) for first in (1, 2, 3)] == [0, 4, 4]
    kept.longest([2, 0])  # used again
    kept.keep([4, 0, 0, 0], rows(0, 4))
    assert [len(kept.longest([first, 0, 0, 0])) for first in (2, 3, 4)] == [4, 0, 4]
    nothing = Encodings(WIDTH, 0)
    nothing.keep([1], rows(0, 1))
    assert len(nothing.longest([1])) == 0
