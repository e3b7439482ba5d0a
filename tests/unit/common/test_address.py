"""Addresses are parsed in one place, and only addresses of this machine work without TLS."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from chaperone_common.address import check_address, host_and_port, is_loopback, split_addresses


@pytest.mark.parametrize(
    "address", ["127.0.0.1:50151", "127.8.9.10:0", "localhost:1", "[::1]:50151", "unix:/run/c.sock"]
)
def test_loopback(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50151",
        "[::]:50151",
        "127.0.0.1.example.com:1",
        "localhost.example.com:1",
        "10.0.0.1:1",
        "dns:127.0.0.1:1",
        "127.0.0.1",
        "127.0.0.1:70000",
        "::1:50151",
        "",
    ],
)
def test_other_addresses_are_not_loopback(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:50151", ("127.0.0.1", 50151)),
        ("cloud.example.com:443", ("cloud.example.com", 443)),
        ("a_b-c.local.:1", ("a_b-c.local.", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_an_address_is_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert host_and_port(address) == expected
    check_address(address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "it is empty"),
        ("127.0.0.1", "there is no port"),
        ("[::1]", "there is no port"),
        ("127.0.0.1:", "'' is no port"),
        ("127.0.0.1:http", "'http' is no port"),
        ("127.0.0.1:-1", "'-1' is no port"),
        ("127.0.0.1:\u0661", "is no port"),
        ("127.0.0.1:99999", "there is no port 99999, the highest is 65535"),
        ("127.0.0.1:" + "9" * 5000, "there is no port 99999999999999999999, the highest is 65535"),
        ("127.0.0.1:0", "nobody listens on port 0"),
        (":50151", "there is no host"),
        ("a b:1", "'a b' is no host"),
        ("-x:1", "'-x' is no host"),
        ("host:1:2", "it has several colons"),
        ("::1:50151", "it has several colons"),
        ("[127.0.0.1]:1", "'127.0.0.1' is no IPv6 address"),
        ("[zz]:1", "'zz' is no IPv6 address"),
        ("http://127.0.0.1:1", "this is a URL"),
        ("unix:", "there is no path"),
    ],
)
def test_the_problem_of_an_address_is_reported(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_address(address)


def test_a_server_may_take_a_free_port_and_a_cloud_may_have_a_socket() -> None:
    assert host_and_port("localhost:0", any_port=True) == ("localhost", 0)
    check_address("unix:/run/c.sock")


@pytest.mark.parametrize(
    ("addresses", "split"),
    [
        ("cloud.example.com:443", ("cloud.example.com:443",)),
        ("unix:/run/a,b.sock", ("unix:/run/a,b.sock",)),
        ("10.0.0.1:1,10.0.0.2:2", ("10.0.0.1:1", "10.0.0.2:2")),
        ("[::1]:1, [::2]:2", ("[::1]:1", "[::2]:2")),
        ("10.0.0.1:1,[::1]:1,b.example.com:1", ("10.0.0.1:1", "[::1]:1", "b.example.com:1")),
        (["10.0.0.1:1"], ("10.0.0.1:1",)),
        (("unix:/run/a,b.sock", " a:1"), ("unix:/run/a,b.sock", "a:1")),
        ([f"a:{port}" for port in range(1, 17)], tuple(f"a:{port}" for port in range(1, 17))),
    ],
)
def test_a_cloud_may_have_several_addresses(addresses: str | Sequence[str], split: tuple[str, ...]) -> None:
    assert split_addresses(addresses) == split


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        ("", "it is empty"),
        ((), "it is empty"),
        ("10.0.0.1:1,", "address 2 of 2, '': it is empty; write HOST:PORT"),
        ("10.0.0.1:1,10.0.0.2", "address 2 of 2, '10.0.0.2': there is no port"),
        (("a:1", "b:99999"), "address 2 of 2, 'b:99999': there is no port 99999, the highest is 65535"),
        (("a:1", "b:1,c:1"), "address 2 of 2, 'b:1,c:1': it has several colons"),
        ("a:1,b:1, A:1", "'A:1' is listed twice; remove one of them"),
        ([f"a:{port}" for port in range(1, 18)], "it lists 17 addresses, and up to 16 are allowed; remove some"),
    ],
)
def test_the_problem_of_several_addresses_is_reported(addresses: str | Sequence[str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        split_addresses(addresses)
