"""Network addresses, parsed and checked without using the network."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

MAX_PORT = 65_535

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
        raise ValueError(f"{port!r} is no port; {_EXAMPLE}")
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
            raise ValueError(f"{host!r} is no IPv6 address; write one as [::1]:50151") from None
    elif ":" in host:
        raise ValueError("it has several colons; write HOST:PORT, or [HOST]:PORT for an IPv6 address")
    elif not _NAME.fullmatch(host):
        raise ValueError(f"{host!r} is no host; {_EXAMPLE}")
    return host


def check_address(address: str, *, any_port: bool = False) -> None:
    """Raise ValueError unless the address is `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`."""
    if not address.startswith("unix:"):
        host_and_port(address, any_port=any_port)
    elif not address.removeprefix("unix:"):
        raise ValueError("there is no path; write unix:PATH")


def split_addresses(addresses: str) -> tuple[str, ...]:
    """Return the addresses of one cloud, which commas separate; raises ValueError as `check_address` does.

    Several addresses must be IP addresses of one kind.
    """
    if addresses.startswith("unix:") or "," not in addresses:
        check_address(addresses)
        return (addresses,)
    split = tuple(part.strip() for part in addresses.split(","))
    versions = {_version(address) for address in split}
    if len(versions) > 1:
        raise ValueError("it mixes IPv4 and IPv6 addresses; give those of one kind")
    return split


def _version(address: str) -> int:
    host, _ = host_and_port(address)
    try:
        return ip_address(host).version
    except ValueError:
        raise ValueError(
            f"{host!r} is a name; several addresses must be IP addresses, or give one name alone"
        ) from None


def is_loopback(address: str) -> bool:
    """Return whether an address stays on this machine. Every other address needs TLS."""
    if address.startswith("unix:"):
        return True
    try:
        host, _ = host_and_port(address, any_port=True)
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
