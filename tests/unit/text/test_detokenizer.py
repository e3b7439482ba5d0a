"""Every sort of decoder: streamed text equals decoded text for any bytes, in linear time, and can be rewound."""

from __future__ import annotations

import time
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Library

from edge_client.text import DetokenizerStream, Tokenizer
from edge_client.text.output import CommittedText, ProvisionalText
from tests.support.device.text import KINDS, library_tokenizer

PIECES = ("", "a", "▁b", "▁", "##c", "d</w>", "é", "语", ".", "n't", "Ġ", " e", "<0x20>", "<0x0A>", "<0xZZ>", "\ufffd")
DECODERS = {
    "none": None,
    "word piece": decoders.WordPiece(cleanup=True),
    "metaspace": decoders.Metaspace(),
    "suffix": decoders.BPEDecoder(),
    "byte-level and more": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
}
LONE_BYTES = 50_000  # decoding the whole text for each of them would take minutes


@cache
def library_of(sort: str) -> Library:
    if sort in KINDS:
        return Library.from_str(library_tokenizer(sort))
    library = Library(models.WordLevel({piece: token_id for token_id, piece in enumerate(PIECES)}, unk_token="a"))
    library.add_special_tokens([AddedToken("<s>")])
    if DECODERS[sort] is not None:
        library.decoder = DECODERS[sort]
    return library


@cache
def tokenizer_of(sort: str) -> Tokenizer:
    return Tokenizer(library_of(sort))


sorts = st.sampled_from([*KINDS, *DECODERS])


def drawn_ids(data: st.DataObject, sort: str) -> list[int]:
    """Draw any ids, bytes more often than others, and some without text."""
    size = tokenizer_of(sort).vocabulary_size
    return data.draw(st.lists(st.integers(0, min(size, 262)) | st.integers(0, size + 3), max_size=24))


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_streamed_text_is_decoded_text(data: st.DataObject) -> None:
    sort = data.draw(sorts)
    token_ids = drawn_ids(data, sort)
    stream = DetokenizerStream(tokenizer_of(sort))
    whole = tokenizer_of(sort).decode(token_ids)
    shown = ""
    for token_id in token_ids:
        shown += stream.push(token_id)
        assert whole.startswith(shown)
        held_back = tokenizer_of(sort).decode(token_ids[: len(stream)])[len(shown) :]
        assert len(held_back) <= 1 or held_back in ("\ufffd" * 2, "\ufffd" * 3)  # the bytes of an unfinished character
    assert shown + stream.flush() == whole
    assert stream.flush() == ""


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_decoded_text_equals_the_librarys(data: st.DataObject) -> None:
    """The library drops valid bytes next to an invalid one, unless the tokenizer is byte-level."""
    sort = data.draw(st.sampled_from([*KINDS, "none", "word piece", "metaspace"]))
    token_ids = drawn_ids(data, sort)
    theirs = library_of(sort).decode(token_ids, skip_special_tokens=True)
    if sort == "none":  # then the library writes spaces between tokens
        theirs = theirs.replace(" ", "")
    ours = tokenizer_of(sort).decode(token_ids)
    if sort == "byte-level" or "\ufffd" not in theirs:
        assert (ours.replace(" ", "") if sort == "none" else ours) == theirs


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_rewound_stream_equals_a_fresh_one(data: st.DataObject) -> None:
    sort = data.draw(sorts)
    tokenizer = tokenizer_of(sort)
    stream = DetokenizerStream(tokenizer)
    kept: list[int] = []
    for _ in range(data.draw(st.integers(1, 4))):
        for token_id in drawn_ids(data, sort):
            stream.push(token_id)
            kept.append(token_id)
        count = data.draw(st.integers(0, len(kept)))
        stream.rewind(count)
        kept = kept[: len(kept) - count]
    assert len(stream) == len(kept)
    fresh = DetokenizerStream(tokenizer)
    for token_id in kept:
        fresh.push(token_id)
    for token_id in drawn_ids(data, sort):
        assert stream.push(token_id) == fresh.push(token_id)
    assert stream.flush() == fresh.flush()


def test_only_pushed_tokens_can_be_rewound() -> None:
    stream = DetokenizerStream(tokenizer_of("byte-level"))
    stream.push(0)
    for count in (-1, 2):
        with pytest.raises(ValueError, match="count: .* is not within 0 to 1"):
            stream.rewind(count)


@pytest.mark.parametrize("sort", ["prepend", "metaspace", "unigram"])
def test_invalid_bytes_do_not_affect_other_characters(sort: str) -> None:
    tokenizer, vocabulary = tokenizer_of(sort), library_of(sort).get_vocab()
    stream = DetokenizerStream(tokenizer)
    ids = [vocabulary[piece] for piece in ("<0x3A>", "<0xE4>", "i", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0xE8>")]
    shown = [stream.push(token_id) for token_id in ids]
    assert shown == [":", "", "\ufffdi", "", "", "", "🙂", ""]
    assert stream.flush() == "\ufffd"
    assert tokenizer.decode(ids) == ":\ufffdi🙂\ufffd"


@pytest.mark.parametrize("sort", ["byte-level", "prepend", "metaspace"])
def test_a_repeated_lone_byte_costs_no_more_than_any_token(sort: str) -> None:
    """Processor time leaves out the other work of the machine."""
    vocabulary = library_of(sort).get_vocab()
    lone = vocabulary["ł" if sort == "byte-level" else "<0x9F>"]
    stream = DetokenizerStream(tokenizer_of(sort))
    began_s = time.process_time()
    shown = "".join(stream.push(lone) for _ in range(LONE_BYTES)) + stream.flush()
    assert time.process_time() - began_s < 5
    assert shown == "\ufffd" * LONE_BYTES


def test_a_character_begun_by_the_draft_and_ended_by_the_cloud() -> None:
    tokenizer = tokenizer_of("byte-level")
    smile, sad = (tokenizer.encode(text) for text in ("🙂", "🙁"))
    assert smile[:-1] == sad[:-1]
    text = ProvisionalText(tokenizer, start=10)
    shown = [text.push(position, token_id) for position, token_id in enumerate(smile, start=10)]
    assert shown == ["", "", "", "🙂"][-len(smile) :]
    assert text.push(10 + len(sad) - 1, sad[-1]) == "🙁"  # in place of the draft's
    text.retract(10)
    assert text.push(10, tokenizer.encode("a")[0]) == "a"


def test_provisional_text_has_no_gaps() -> None:
    text = ProvisionalText(tokenizer_of("byte-level"), start=10, resumed=tokenizer_of("byte-level").encode("ab")[:1])
    for position in (9, 12):
        with pytest.raises(ValueError, match="count"):
            text.push(position, 0)
    assert isinstance(text.push(11, 0), str)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_provisional_text_ends_as_the_text_of_final_tokens(data: st.DataObject) -> None:
    """The committed text equals the text of all final tokens, for any drafts and retractions between."""
    tokenizer = tokenizer_of("byte-level")
    final = tokenizer.encode(data.draw(st.text(min_size=1, max_size=8)))
    text = ProvisionalText(tokenizer, start=3)
    pieces: list[str] = []
    cuts = sorted(data.draw(st.sets(st.integers(0, len(final)), max_size=4)) | {0, len(final)})
    for start, end in pairwise(cuts):
        for offset, token_id in enumerate(drawn_ids(data, "byte-level")[:5]):
            text.push(3 + start + offset, token_id)
        pieces += [text.push(3 + position, final[position]) for position in range(start, end)]
    assert "".join(pieces) == tokenizer.decode(final)


def test_a_resumed_text_with_a_stop_string_is_reported() -> None:
    tokenizer = tokenizer_of("byte-level")
    token_ids = tokenizer.encode("one two three")
    assert CommittedText(tokenizer, ["two"], resumed=token_ids).stopped
    assert not CommittedText(tokenizer, ["four"], resumed=token_ids).stopped
    begun = CommittedText(tokenizer, ["three and"], resumed=token_ids)
    assert not begun.stopped
    assert begun.flush() == "three"
    late = CommittedText(tokenizer, ["\ufffd"], resumed=tokenizer.encode("🙂")[:-1])
    assert not late.stopped
    assert late.flush() == ""
    assert late.stopped
