"""The caller of a call, by token; and what refusals cost and reveal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from chaperone_common.errors import Overloaded, Unauthenticated
from cloud_supervisor.caller import ANONYMOUS, Caller
from cloud_supervisor.security import authentication
from cloud_supervisor.security.authentication import TokenEnded, peer_address
from cloud_supervisor.security.tokens import split_token
from tests.support.security.authentication import PEER, Rig, ask, id_of, message_of, wrong


def test_without_credentials_everybody_is_anonymous(rig: Rig) -> None:
    authenticator = rig.authenticator()
    assert authenticator.is_open
    for token in (None, "whatever a device sends"):
        caller = ask(authenticator, token)
        assert caller == Caller(ANONYMOUS, "10.1.2.3")
        assert authenticator.valid(caller)


def test_a_token_names_its_tenant(rig: Rig) -> None:
    token = rig.token("acme")
    authenticator = rig.authenticator(tokens=True)
    assert not authenticator.is_open
    caller = ask(authenticator, token)
    assert caller == Caller("acme", "10.1.2.3", id_of(token))
    assert authenticator.valid(caller)


def test_no_token_is_refused_with_the_remedy(rig: Rig) -> None:
    rig.token()
    with pytest.raises(Unauthenticated, match="^authorization: no token; give --token-file or CHAPERONE_TOKEN$"):
        ask(rig.authenticator(tokens=True))
    with pytest.raises(Unauthenticated, match="^authorization: no token"):
        ask(rig.authenticator(jwt=True))


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Basic eDp5")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer")],
        [("authorization", b"Bearer x")],
        [("authorization", "Bearer x"), ("authorization", "Bearer y")],
    ],
)
def test_anything_but_one_bearer_token_is_refused(rig: Rig, metadata: Any) -> None:
    rig.token()
    authenticator = rig.authenticator(tokens=True)
    with pytest.raises(Unauthenticated, match="^authorization: it is not one `Bearer TOKEN`$"):
        asyncio.run(authenticator.authenticate(metadata, {}, PEER))


def test_the_scheme_is_read_in_any_case(rig: Rig) -> None:
    metadata = [("authorization", f"bearer  {rig.token()}")]
    assert asyncio.run(rig.authenticator(tokens=True).authenticate(metadata, {}, PEER)).tenant == "acme"


def test_an_unknown_id_and_a_wrong_secret_read_alike(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    unknown = f"chp_{'0' * 12}_{'a' * 43}"
    messages = {message_of(authenticator, bad) for bad in (unknown, wrong(token), "chp_x_y", "eyJ.x.y")}
    assert messages == {"authorization: the token is not valid"}
    assert rig.checks == [id_of(token)], "only the wrong secret is hashed"


def test_a_flood_of_one_token_costs_one_hash(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)

    async def flood() -> None:
        for sent in (token, wrong(token)):
            metadata = [("authorization", f"Bearer {sent}")]
            calls = [authenticator.authenticate(metadata, {}, PEER) for _ in range(100)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            again = await asyncio.gather(*(authenticator.authenticate(metadata, {}, PEER),), return_exceptions=True)
            assert {type(outcome) for outcome in (*outcomes, *again)} <= {Caller, Unauthenticated}

    asyncio.run(flood())
    assert rig.checks == [id_of(token)] * 2


def test_a_refused_token_is_checked_again_later(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    for rig.clock.seconds in (0.0, 9.0, 10.0):
        message_of(authenticator, wrong(token))
    assert len(rig.checks) == 2


def test_too_many_different_tokens_are_refused_for_now(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_MOST_WAITING", 2)
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)

    async def flood() -> list[type]:
        sent = [token[:-2] + end for end in ("aa", "bb", "cc", "dd")]
        calls = [authenticator.authenticate([("authorization", f"Bearer {one}")], {}, PEER) for one in sent]
        return [type(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True)]

    assert asyncio.run(flood()) == [Unauthenticated, Unauthenticated, Overloaded, Overloaded]


def test_a_caller_that_leaves_does_not_end_the_check_of_another(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)

    async def leave() -> Caller:
        metadata = [("authorization", f"Bearer {token}")]
        first, second = (asyncio.create_task(authenticator.authenticate(metadata, {}, PEER)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(leave()).tenant == "acme"


def test_only_the_last_tokens_are_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_CACHED", 2)
    tokens = [rig.token(name) for name in ("a", "b", "c")]
    authenticator = rig.authenticator(tokens=True)
    for token in (*tokens, tokens[1], tokens[0]):
        ask(authenticator, token)
    assert rig.checks == [id_of(token) for token in (*tokens, tokens[0])]


def test_a_revocation_ends_a_token_and_its_streams_at_once(rig: Rig) -> None:
    token, other = rig.token(), rig.token("other")
    authenticator = rig.authenticator(tokens=True)
    caller, kept = ask(authenticator, token), ask(authenticator, other)
    rig.revoke(token)
    assert not authenticator.valid(caller)
    assert authenticator.valid(kept)
    assert message_of(authenticator, token) == (
        f"authorization: the token {token[4:16]} was revoked; ask the operator of the cloud for another"
    )
    with pytest.raises(TokenEnded) as ended:
        ask(authenticator, token)
    assert ended.value.token_id == token[4:16]
    assert message_of(authenticator, wrong(token)) == "authorization: the token is not valid", "for strangers"


def test_a_removed_token_is_unknown(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    caller = ask(authenticator, token)
    rig.path.write_text(json.dumps({"tokens": []}))
    assert not authenticator.valid(caller)
    assert message_of(authenticator, token) == "authorization: the token is not valid"


def test_a_token_expires(rig: Rig) -> None:
    token = rig.token(expires_in=timedelta(hours=1))
    authenticator = rig.authenticator(tokens=True)
    caller = ask(authenticator, token)
    rig.wall.seconds += 3_599
    assert authenticator.valid(caller)
    rig.wall.seconds += 1
    assert not authenticator.valid(caller)
    assert message_of(authenticator, token) == (
        f"authorization: the token {token[4:16]} has expired; ask the operator of the cloud for another"
    )
    assert rig.checks == [id_of(token)], "known from before"


def test_a_new_token_works_at_once(rig: Rig) -> None:
    rig.token()
    authenticator = rig.authenticator(tokens=True)
    new = rig.token("new")
    assert ask(authenticator, new).tenant == "new"


def test_a_broken_file_keeps_the_tokens(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    rig.path.write_text("{")
    assert authenticator.valid(ask(authenticator, token))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50151", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50151", "::1"),
        ("ipv6:[2001:db8::1]:50151", "2001:db8::1"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4711", "10.0.0.1"),
        ("unix:/run/c.sock", "unix"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_is_its_address_without_the_port(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def test_no_repr_shows_a_secret(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    show: Callable[[object], str] = repr
    parts = split_token(token)
    assert parts is not None
    assert parts[1] not in show(ask(authenticator, token)) + show(authenticator)
