"""Texts of ended sessions: an Open refers to one of its tenant, by a digest, as long as the cloud keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.errors import PrefixNotFound
from chaperone_common.session.prefixes import digest_of, shortened
from chaperone_common.types import SessionId
from cloud_supervisor.admission import SessionKey
from cloud_supervisor.kept_texts import KeptTexts
from tests.support.session.cloud import opening

TEXT = (7, 151_000, 3, 2**32 - 1, 5)
EARLIER = SessionId("earlier")


def key(session: str = EARLIER, tenant: str = "t") -> SessionKey:
    return SessionKey(tenant, SessionId(session))


@pytest.fixture
def kept() -> KeptTexts:
    texts = KeptTexts(most=2, most_tokens=12)
    texts.keep(key(), TEXT)
    return texts


@given(length=st.integers(1, len(TEXT)), rest=st.lists(st.integers(0, 2**32 - 1), max_size=5))
def test_an_open_gets_its_whole_prompt_back(length: int, rest: list[int]) -> None:
    texts = KeptTexts(most=2, most_tokens=12)
    texts.keep(key(), TEXT)
    whole = opening(prompt=(*TEXT[:length], *rest))
    short = shortened(whole, EARLIER, length)
    assert short.prompt_token_ids == tuple(rest)
    assert texts.completed("t", short) == whole
    assert texts.completed("t", whole) == whole


def test_another_text_session_or_tenant_is_not_found(kept: KeptTexts) -> None:
    whole = opening(prompt=(*TEXT, 9))
    found = shortened(whole, EARLIER, 5)
    assert found.prefix is not None
    kept.completed("t", found)
    for prefix in (
        replace(found.prefix, session_id=SessionId("other")),
        replace(found.prefix, digest=digest_of((8, *TEXT[1:]))),
        replace(found.prefix, length=4),
        replace(found.prefix, length=6),
    ):
        with pytest.raises(PrefixNotFound, match=f"these {prefix.length} tokens; send the whole prompt"):
            kept.completed("t", replace(found, prefix=prefix))
    with pytest.raises(PrefixNotFound):
        kept.completed("u", found)


def test_the_oldest_texts_go_first(kept: KeptTexts) -> None:
    kept.keep(key("b"), TEXT)
    kept.keep(key(), TEXT)
    kept.keep(key("c"), TEXT[:2])
    assert holds(kept) == {EARLIER, "c"}, "at most two"
    kept.keep(key("d"), TEXT * 2)
    assert holds(kept) == {"c", "d"}
    kept.keep(key("e"), TEXT[:3])
    assert holds(kept) == {"e"}, "ten, two and three tokens are more than twelve"
    kept.keep(key("e"), TEXT * 3)
    assert holds(kept) == set(), "one that is too long is not kept"


def test_a_turn_takes_the_place_of_the_one_before(kept: KeptTexts) -> None:
    kept.keep(key("b"), TEXT, in_place_of=key())
    kept.keep(key("c"), TEXT[:2])
    assert holds(kept) == {"b", "c"}
    kept.keep(key("d"), TEXT, in_place_of=key("unknown"))
    assert holds(kept) == {"c", "d"}


def test_a_tenant_with_many_texts_loses_its_own(kept: KeptTexts) -> None:
    kept.keep(key("b", "u"), TEXT[:2])
    kept.keep(key("b"), TEXT)
    kept.keep(key("c"), TEXT)
    assert (holds(kept), holds(kept, "u")) == ({"c"}, {"b"})


def holds(kept: KeptTexts, tenant: str = "t") -> set[str]:
    found = set()
    for session in (EARLIER, "b", "c", "d", "e"):
        try:
            kept.completed(tenant, shortened(opening(prompt=TEXT), SessionId(session), 1))
        except PrefixNotFound:
            continue
        found.add(session)
    return found


def test_none_are_kept_if_none_are_wanted() -> None:
    texts = KeptTexts(most=0, most_tokens=100)
    texts.keep(key(), TEXT)
    assert holds(texts) == set()


def test_the_digest_is_that_of_the_specification() -> None:
    """BLAKE2b with 16 bytes, of four bytes each."""
    assert digest_of((1, 256)).hex() == "96e6edd49d8cfe8e74b11c83fe0e0a6d"
