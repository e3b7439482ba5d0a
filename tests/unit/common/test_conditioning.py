"""Encodings: eight bits a number, and a digest that covers every bit of them."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.conditioning import DIGEST_BYTES, Encoding


def encoding(tokens: int, width: int = 5, start: int = 3, seed: int = 0) -> Encoding:
    rows = np.random.default_rng(seed).standard_normal((tokens, width)) * 10
    return Encoding.of(rows.astype(np.float32), start)


@given(tokens=st.integers(0, 6), width=st.integers(1, 9), seed=st.integers(0, 99), exponent=st.integers(-20, 20))
def test_a_number_is_off_by_at_most_half_a_step_of_its_row(tokens: int, width: int, seed: int, exponent: int) -> None:
    rows = (np.random.default_rng(seed).standard_normal((tokens, width)) * 2.0**exponent).astype(np.float32)
    error = np.abs(Encoding.of(rows).rows() - rows)
    step = np.abs(rows).max(axis=1, initial=0.0, keepdims=True) / 127
    assert (error <= 0.501 * step).all()


def test_a_row_of_zeros_stays_one() -> None:
    assert not Encoding.of(np.zeros((2, 4), np.float32)).rows().any()


@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_parts_that_follow_each_other_are_the_whole(cuts: list[int]) -> None:
    whole = encoding(sum(cuts))
    joined, at = Encoding(whole.scales[:0], whole.values[:0], whole.start), whole.start
    for tokens in cuts:
        joined = joined.followed_by(whole.between(at, at + tokens))
        at += tokens
    assert joined == whole
    assert joined.digest() == whole.digest()
    parts = [*whole.split(2)]
    assert [len(part) for part in parts[:-1]] == [2] * (len(parts) - 1)
    assert Encoding.joined(parts) == whole
    assert b"".join(part.packed() for part in parts) == whole.packed()


def test_the_digest_is_that_of_the_specification() -> None:
    whole = encoding(3)
    rows = zip(whole.scales.tolist(), whole.values.tolist(), strict=True)
    data = b"".join(struct.pack("<f", scale) + struct.pack("5b", *values) for scale, values in rows)
    assert whole.digest() == hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


@pytest.mark.parametrize("part", ["scales", "values"])
def test_every_number_changes_the_digest(part: str) -> None:
    whole = encoding(3)
    changed = getattr(whole, part).copy()
    changed.flat[-1] += 1
    assert replace(whole, **{part: changed}).digest() != whole.digest()


def test_rows_that_do_not_fit_are_refused() -> None:
    whole = encoding(4)
    with pytest.raises(ValueError, match=r"rows of width 5 from 8 on follow 5 up to 7"):
        whole.followed_by(encoding(1, start=8))
    with pytest.raises(ValueError, match=r"rows of width 6 from 7 on follow 5 up to 7"):
        whole.followed_by(encoding(1, width=6, start=7))
    with pytest.raises(ValueError, match=r"\[2, 5\) is outside"):
        whole.between(2, 5)
    with pytest.raises(ValueError, match="scales, values"):
        Encoding(whole.scales[:2], whole.values)
