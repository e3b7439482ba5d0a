"""Network addresses, parsed and checked without using the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address

from chaperone_common.suggestion import shown

MAX_PORT = 65_535
MAX_ADDRESSES = 16  # of one cloud; a device asks all of them before it gives the cloud up

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")  # a host
_EXAMPLE = "write HOST:PORT, such as 127.0.0.1:50151"


def host_and_port(address: str, *, any_port: bool = False) -> tuple[str, int]:
    """Parse `HOST:PORT`, or `[HOST]:PORT` for IPv6.

    `any_port` allows port 0, with which a server takes a free one. Raises ValueError with the problem and without the
    value.
    """
    if not address:
        raise ValueError(f"it is empty; {_EXAMPLE}")
    if "//" in address:
        raise ValueError(f"this is a URL; {_EXAMPLE}, without a scheme")
    host, separator, port = address.rpartition(":")
    if not separator or (host.startswith("[") and not host.endswith("]")):
        raise ValueError(f"there is no port; {_EXAMPLE}")
    if not host:
        raise ValueError(f"there is no host; {_EXAMPLE}")
    host = _host(host)
    if not (port.isascii() and port.isdecimal()):
        raise ValueError(f"{shown(port)} is no port; {_EXAMPLE}")
    if len(port) > len(str(MAX_PORT)) or int(port) > MAX_PORT:
        raise ValueError(f"there is no port {port[:20]}, the highest is {MAX_PORT}; {_EXAMPLE}")
    if int(port) == 0 and not any_port:
        raise ValueError("nobody listens on port 0; give the port that the server printed when it started")
    return host, int(port)


def _host(written: str) -> str:
    """Return the host without its brackets."""
    bracketed = re.fullmatch(r"\[(.*)\]", written)
    host = bracketed[1] if bracketed else written
    if bracketed:
        try:
            IPv6Address(host)
        except ValueError:
            raise ValueError(f"{shown(host)} is no IPv6 address; write one as [::1]:50151") from None
    elif ":" in host:
        raise ValueError("it has several colons; write HOST:PORT, or [HOST]:PORT for an IPv6 address")
    elif not _NAME.fullmatch(host):
        raise ValueError(f"{shown(host)} is no host; {_EXAMPLE}")
    return host


def check_address(address: str, *, any_port: bool = False) -> None:
    """Raise ValueError unless the address is `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`."""
    if not address.startswith("unix:"):
        host_and_port(address, any_port=any_port)
    elif not address.removeprefix("unix:"):
        raise ValueError("there is no path; write unix:PATH")


def split_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of a cloud's servers: a sequence of them, or one text in which commas separate them.

    A text that begins with `unix:` is one path. Raises ValueError as `check_address` does, also for an address that is
    listed twice, and for more than `MAX_ADDRESSES`.
    """
    if isinstance(addresses, str):
        several = "," in addresses and not addresses.startswith("unix:")
        addresses = addresses.split(",") if several else [addresses]
    split = tuple(address.strip() for address in addresses)
    if not split:
        raise ValueError(f"it is empty; {_EXAMPLE}")
    if len(split) > MAX_ADDRESSES:
        raise ValueError(
            f"it lists {len(split)} addresses, and up to {MAX_ADDRESSES} are allowed; remove some, or give the servers "
            "one name"
        )
    for number, address in enumerate(split, 1):
        try:
            check_address(address)
        except ValueError as error:
            raise ValueError(
                f"address {number} of {len(split)}, {shown(address)}: {error}" if split[1:] else error
            ) from None
    twice = next(
        (address for number, address in enumerate(split) if _same(address) in map(_same, split[:number])), None
    )
    if twice is not None:
        raise ValueError(f"{shown(twice)} is listed twice; remove one of them")
    return split


def _same(address: str) -> str:
    """Return a text that two spellings of one address share: names of hosts ignore case."""
    return address if address.startswith("unix:") else address.lower()


def is_loopback(address: str) -> bool:
    """Return whether an address stays on this machine. Every other address needs TLS."""
    if address.startswith("unix:"):
        return True
    try:
        host, _ = host_and_port(address, any_port=True)
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
