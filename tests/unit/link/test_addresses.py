"""The order of addresses spreads sessions evenly and moves few of them; addresses that failed are tried last."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.link.addresses import Outages, Turns, rendezvous_order
from tests.support.fakes.clock import ManualClock

SESSIONS = 20_000
ADDRESSES = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=16, unique=True)


def test_the_order_is_the_same_on_every_device() -> None:
    """These are fixed: devices of different versions have to agree."""
    assert rendezvous_order("a-session", ["10.0.0.1:50151", "10.0.0.2:50151", "cloud.example.com:443"]) == (
        "cloud.example.com:443",
        "10.0.0.2:50151",
        "10.0.0.1:50151",
    )


@given(st.text(), ADDRESSES, st.randoms(use_true_random=False))
def test_the_order_holds_each_address_once_and_ignores_that_of_the_settings(
    session_id: str, addresses: list[str], random: object
) -> None:
    order = rendezvous_order(session_id, addresses)
    assert sorted(order) == sorted(addresses)
    shuffled = list(addresses)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rendezvous_order(session_id, shuffled) == order


@given(st.text(), ADDRESSES, st.data())
def test_without_an_address_the_others_keep_their_order(
    session_id: str, addresses: list[str], data: st.DataObject
) -> None:
    removed = data.draw(st.sampled_from(addresses))
    order = rendezvous_order(session_id, addresses)
    left = rendezvous_order(session_id, [address for address in addresses if address != removed])
    assert left == tuple(address for address in order if address != removed)


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_shares_are_even_and_so_are_those_of_the_next_address(count: int) -> None:
    addresses = [f"10.0.0.{number}:50151" for number in range(count)]
    orders = [rendezvous_order(f"{number:032x}", addresses) for number in range(SESSIONS)]
    pairs = Counter(order[:2] for order in orders)
    share = 1 / (count * (count - 1))
    bound = 5 * math.sqrt(SESSIONS * share * (1 - share))  # five standard deviations
    assert len(pairs) == count * (count - 1)
    assert all(abs(number - SESSIONS * share) <= bound for number in pairs.values())


# --- Addresses that failed of late -----------------------------------------------------------------------------------


def test_an_address_that_failed_is_last_for_a_while_and_comes_back() -> None:
    clock = ManualClock()
    outages = Outages(clock)
    outages.note("a")
    assert outages.last("abc") == ("b", "c", "a")
    clock.seconds = 29.9
    assert outages.last("abc") == ("b", "c", "a")
    clock.seconds = 30.1
    assert outages.last("abc") == ("a", "b", "c")


def test_an_answer_ends_the_while_at_once() -> None:
    outages = Outages(ManualClock())
    outages.note("a")
    outages.note("b")
    outages.clear("a")
    outages.clear("c")
    assert outages.last("abc") == ("a", "c", "b")


def test_if_all_failed_their_order_stays() -> None:
    outages = Outages(ManualClock())
    for address in "cab":
        outages.note(address)
    assert outages.last("abc") == ("a", "b", "c")


@pytest.mark.parametrize(("retry_after_ms", "seconds"), [(500, 0.5), (0, 0.0), (9_000_000, 30.0)])
def test_a_server_may_name_a_shorter_while_but_no_longer_one(retry_after_ms: int, seconds: float) -> None:
    clock = ManualClock(100.0)
    outages = Outages(clock)
    outages.note("a", retry_after_ms)
    clock.seconds = 100.0 + max(0.0, seconds - 0.01)
    assert outages.last("ab") == (("b", "a") if seconds else ("a", "b"))
    clock.seconds = 100.0 + seconds + 0.01
    assert outages.last("ab") == ("a", "b")


# --- Turns -----------------------------------------------------------------------------------------------------------


def test_each_address_has_a_turn_without_a_pause_before_any_has_a_second_one() -> None:
    turns = Turns(3, first=1)
    for expected in (1, 2, 0):
        turn = turns.next(0.0, 1_000.0)
        assert turn == (expected, 0.0, 0.0)
        turns.failed(expected, 0.0, asked_ms=0.0, pause_ms=100.0 + expected)
    assert turns.next(40.0, 1_000.0) == (0, 0.0, 60.0)
    turns.failed(0, 100.0, asked_ms=0.0, pause_ms=200.0)
    assert turns.next(100.0, 1_000.0) == (1, 0.0, 1.0)
    assert [turns.failures(address) for address in range(3)] == [2, 1, 1]


def test_an_address_that_asks_for_time_is_left_alone_and_others_are_not() -> None:
    turns = Turns(2)
    turns.failed(0, 0.0, asked_ms=5_000.0, pause_ms=10.0)
    turns.failed(1, 0.0, asked_ms=0.0, pause_ms=700.0)
    assert turns.next(0.0, 9_000.0) == (1, 0.0, 700.0)
    turns.failed(1, 700.0, asked_ms=8_000.0, pause_ms=0.0)
    assert turns.next(700.0, 8_300.0) == (0, 4_300.0, 4_310.0)
    assert turns.next(700.0, 4_200.0) is None, "both asked for more than is left"
    assert Turns(2).next(0.0, 0.0) is None


def test_addresses_without_a_turn_share_the_time() -> None:
    turns = Turns(4)
    assert turns.share_ms(8_000.0) == 2_000.0
    assert turns.share_ms(2_000.0) == 1_000.0, "a connection takes some round trips"
    assert turns.share_ms(300.0) == 300.0
    turns.failed(0, 0.0, asked_ms=0.0, pause_ms=1.0)
    assert turns.share_ms(6_000.0) == 2_000.0
    assert Turns(1).share_ms(6_000.0) == 6_000.0
