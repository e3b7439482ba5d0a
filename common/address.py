"""What can be known of a network address without asking the network."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(address: str) -> bool:
    """Whether `HOST:PORT`, `[HOST]:PORT` or `unix:PATH` stays on this machine; anything else needs TLS."""
    if address.startswith("unix:"):
        return True
    host, _, port = address.rpartition(":")
    try:
        local = host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
    return local and port.isdecimal() and int(port) < 2**16
