"""Tokens to text and stop strings: streams against whole strings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.errors import ModelCorrupt, ModelMissing
from edge_client.text import DetokenizerStream, StopScanner, Tokenizer
from edge_client.text.output import CommittedText


@pytest.fixture(scope="module")
def folder(tiny_pair: Path) -> Path:
    return tiny_pair / "edge"


@pytest.fixture(scope="module")
def manifest(folder: Path) -> ModelManifest:
    return load_manifest(folder, role="edge")


@pytest.fixture(scope="module")
def tokenizer(folder: Path, manifest: ModelManifest) -> Tokenizer:
    return Tokenizer.load(folder, manifest)


# --- Tokenizer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "def f(x):\n    return x", "naïve 語 🙂 e\u0301", "a\x00b", "\ufffd"])
def test_plain_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_parsed_but_not_written(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token is not None
    assert tokenizer.encode(tokenizer.eos_token) == (tokenizer.eos_token_ids[0],)
    assert tokenizer.decode(tokenizer.encode(f"a{tokenizer.eos_token}b")) == "ab"


def test_a_missing_broken_or_different_tokenizer_is_reported(
    tmp_path: Path, folder: Path, manifest: ModelManifest
) -> None:
    with pytest.raises(ModelMissing, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path, manifest)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match="not a tokenizer"):
        Tokenizer.load(tmp_path, manifest)
    with pytest.raises(ModelCorrupt, match="manifest says 7"):
        Tokenizer.load(folder, manifest.model_copy(update={"vocabulary_size": 7}))


# --- Streamed text --------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_token_ids_stream_to_their_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=40))
    whole = tokenizer.decode(token_ids)
    stream = DetokenizerStream(tokenizer)
    shown = ""
    for token_id in token_ids:
        shown += stream.push(token_id)
        assert whole.startswith(shown)
    assert shown + stream.flush() == whole
    assert stream.flush() == ""


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), cut=st.integers(0, 8))
def test_text_cut_inside_a_character_streams_whole_characters(tokenizer: Tokenizer, text: str, cut: int) -> None:
    token_ids = tokenizer.encode(text)
    token_ids = token_ids[: len(token_ids) - cut]
    stream = DetokenizerStream(tokenizer)
    shown = "".join(stream.push(token_id) for token_id in token_ids)
    whole = tokenizer.decode(token_ids)
    assert text.startswith(shown)
    assert shown + stream.flush() == whole


def test_a_character_of_several_tokens_appears_once_and_whole(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("🙂")
    assert len(token_ids) > 1
    stream = DetokenizerStream(tokenizer)
    assert [stream.push(token_id) for token_id in token_ids] == [""] * (len(token_ids) - 1) + ["🙂"]


# --- Stop strings ---------------------------------------------------------------------------------------------------


def cut_at_first(text: str, stop: list[str]) -> tuple[str, bool]:
    starts = [start for start in (text.find(one) for one in stop) if start >= 0]
    return (text[: min(starts)], True) if starts else (text, False)


@settings(max_examples=500, deadline=None)
@given(
    chunks=st.lists(st.text("ab", max_size=4), max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
def test_any_chunking_finds_the_same_stop_as_a_search_of_the_whole_text(chunks: list[str], stop: list[str]) -> None:
    expected, met = cut_at_first("".join(chunks), stop)
    scanner = StopScanner(stop)
    shown = ""
    for chunk in chunks:
        safe, stopped = scanner.push(chunk)
        shown += safe
        assert expected.startswith(shown)
        if stopped:
            break
    assert shown + scanner.flush() == expected
    assert scanner.stopped == met


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        (["one\n", "\ntwo"], ["one", ""]),
        (["EN", "D"], ["", ""]),
        (["E", "NTER"], ["", "ENTER"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_only_the_start_of_a_stop_string_is_held_back(chunks: list[str], shown: list[str]) -> None:
    scanner = StopScanner(("\n\n", "END"))
    assert [scanner.push(chunk)[0] for chunk in chunks] == shown


def test_no_text_follows_a_stop_string() -> None:
    scanner = StopScanner(("x",))
    assert scanner.push("axb") == ("a", True)
    assert scanner.push("c") == ("", True)
    assert scanner.flush() == ""


def test_long_stop_strings_are_as_fast_as_short_ones() -> None:
    """Processor time leaves out the other work of the machine."""
    scanner = StopScanner([f"{'ab' * 127}{number:02d}" for number in range(16)])
    began_s = time.process_time()
    shown = "".join(scanner.push("abababab")[0] for _ in range(10_000)) + scanner.flush()
    assert time.process_time() - began_s < 5
    assert shown == "ab" * 40_000


def test_a_shorter_stop_string_may_complete_before_an_earlier_start() -> None:
    scanner = StopScanner(("abcx", "bc", "c"))
    assert scanner.push("abc") == ("", False)  # "abcx" starts first and may still complete
    assert scanner.flush() == "a"
    assert scanner.stopped
    scanner = StopScanner(("abcx", "bc"))
    assert scanner.push("abc") == ("", False)
    assert scanner.push("d") == ("a", True)


def test_generated_text_is_detokenized_and_stopped(tokenizer: Tokenizer) -> None:
    output = CommittedText(tokenizer, stop=("🙂",))
    pieces = [output.push(token_id) for token_id in tokenizer.encode("naïve 🙂 rest")]
    assert "".join(text for text, _ in pieces) + output.flush() == "naïve "
    assert pieces[-1][1]
    cut = CommittedText(tokenizer, stop=())
    assert "".join(cut.push(token_id)[0] for token_id in tokenizer.encode("naïve 🙂")[:-1]) == "naïve "
    assert cut.flush() == "\ufffd"
