"""The reason why no connection comes about: a cloud that is not there yet, or settings that can never work.

gRPC tries again in both cases. Waiting helps only in the first, so the second is recognised here, by the words of
gRPC's errors and by a connection of our own.
"""

from __future__ import annotations

import asyncio
import ssl
from enum import Enum, auto

from chaperone_common.address import host_and_port
from chaperone_common.errors import CloudUnavailable
from chaperone_common.types import Mode
from edge_client.link.credentials import TlsFiles

# The remedies where waiting may help: of a text, and of the search for a cloud before a text.
START_IT = "start its server, or correct cloud.address (--cloud)"
OR_WENT_AWAY = "cannot be reached, or went away: "  # after an address, and before the reason
_WAIT_LONGER = "raise cloud.connect_timeout_ms to wait longer"
MAY_LOAD = f"{START_IT}; a server that was just started may still be loading, {_WAIT_LONGER}"
_PROBE_S = 0.7  # for each step; most problems are reported within a second
_CONFIRM_AFTER_S = 0.2

_REASONS = {
    "errors resolving": "no address is known for its name",
    "DNS resolution failed": "no address is known for its name",
    "Connection refused": "nothing listens there",
    "No route to host": "no network leads there",
    "Network is unreachable": "no network leads there",
    "Socket closed": "the connection is closed at once",
    "Connection reset": "the connection is closed at once",
    "connect timed out": "nothing answers",
    "Timeout occurred": "nothing answers",
}


def without_remedy(message: str) -> str:
    """Return the message of an address that cannot be reached without its remedy, for one that joins several."""
    return message.removesuffix(f"; {MAY_LOAD}").removesuffix(f"; {START_IT}")


def after_loss(mode: Mode, on_loss: str, final_tokens: int, resume: str, *, beams: bool = False) -> str:
    """Return what to do about a text that failed in this mode because the cloud is lost; `on_loss` as configured.

    `resume` says how to go on from its final tokens, in the words of the user's interface. Texts with `beams` need a
    cloud in all modes.
    """
    final = f"{final_tokens} token{' is' if final_tokens == 1 else 's are'} final; {resume}; " if final_tokens else ""
    return final + without_cloud(mode, on_loss, beams=beams)


def without_cloud(mode: Mode, on_loss: str, *, beams: bool = False) -> str:
    """Return how a text can be written that failed in this mode because the cloud is lost; `on_loss` as configured."""
    if beams:
        return 'or write one text without it: num_beams 1 and mode edge (--num-beams 1 --mode edge, mode="edge")'
    ways = ['mode edge (--mode edge, mode="edge")']
    if mode is not Mode.GATED and on_loss != "fail":
        ways.append("mode gated, which continues while the cloud is lost")
    if mode.drafts and on_loss != "continue":
        ways.append("cloud.on_loss: continue")
    return f"or write without it: {', or '.join(ways)}"


class NeverConnects(CloudUnavailable):
    """The settings do not fit the server at an address: waiting cannot help. Users see it as CloudUnavailable."""


class _Answer(Enum):
    """The answer of a port to the beginning of a TLS connection."""

    NONE = auto()  # refused, closed, or no answer in time
    PLAIN = auto()
    TLS = auto()
    TLS_THEN_CLOSED = auto()  # after the handshake, before the first frame


def handshake_problem(details: str, address: str, tls: TlsFiles | None) -> str | None:
    """Return the problem that gRPC's words name, with its remedy; None if waiting may help."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        if "expired" in details or "not yet valid" in details:
            state = "has expired" if "expired" in details else "is not yet valid"
            return (
                f"cloud: the certificate of {address} {state}; renew it (tls.cert_file of the cloud), or correct the "
                "clock of this machine"
            )
        known = "in cloud.ca_file" if tls is not None and tls.authorities else "known to the public"
        return (
            f"cloud: the certificate of {address} is not from an authority {known}; give the file with its authority "
            "(cloud.ca_file, --tls-ca)"
        )
    if "Hostname Verification" in details or "not in peer certificate" in details:
        return (
            f"cloud: the certificate of {address} is for another name; correct cloud.address, or give the cloud a "
            f"certificate for {address.rpartition(':')[0]}"
        )
    if "WRONG_VERSION_NUMBER" in details:
        return (
            f"cloud: {address} answers without TLS; give the cloud a certificate (--tls-cert, --tls-key), or set "
            "cloud.tls: false"
        )
    if "security handshaker" in details:
        return "cloud: gRPC cannot use the files of cloud.ca_file, cloud.cert_file and cloud.key_file; check them"
    return None


def not_in_time(error: CloudUnavailable, timeout_ms: float) -> CloudUnavailable:
    """Return the error of a cloud that answers, and is not ready in time, such as while it loads its model.

    Any other error is returned as it is.
    """
    if error.retry_after_ms is None:
        return error
    message = f"{error.message}; it was not ready within {timeout_ms:g} ms, {_WAIT_LONGER}"
    return CloudUnavailable(message, retry_after_ms=error.retry_after_ms)


def reason_of(details: str) -> str:
    """Return why the last attempt to connect failed, in a few words; empty if gRPC's words do not say."""
    for words, reason in _REASONS.items():
        if words in details:
            return reason
    return ""


async def connection_problem(details: str, address: str, tls: TlsFiles | None) -> str | None:
    """Return the problem of a failed connection, with its remedy; None if waiting may help.

    Where gRPC only says that the other end closed the connection, this makes one to see why.
    """
    problem = handshake_problem(details, address, tls)
    if problem is not None or not _was_closed(details):
        return problem
    answer = await _probe(address)
    if answer is _Answer.TLS_THEN_CLOSED:  # so does a server that stops just then
        await asyncio.sleep(_CONFIRM_AFTER_S)
        answer = await _probe(address)
    match answer:
        case _Answer.TLS | _Answer.TLS_THEN_CLOSED if tls is None:
            return (
                f"cloud: {address} answers with TLS; set cloud.tls: true, and cloud.ca_file (--tls-ca) to its authority"
            )
        case _Answer.TLS_THEN_CLOSED if tls is not None and tls.certificate is None:
            return (
                f"cloud: {address} closes the connection after the TLS handshake: it may want a certificate of "
                "this device; give cloud.cert_file and cloud.key_file"
            )
        case _Answer.TLS_THEN_CLOSED:
            return (
                f"cloud: {address} does not accept the certificate of this device: it has expired, or is from another "
                "authority; renew the one in cloud.cert_file"
            )
        case _:
            return None


def _was_closed(details: str) -> bool:
    return "Socket closed" in details or "Connection reset" in details or "Broken pipe" in details


async def _probe(address: str) -> _Answer:
    """Begin a TLS connection, send nothing over it, and return the answer."""
    # Nothing that the other end says is believed or shown, so that its certificate does not matter.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_PROBE_S):
            if address.startswith("unix:"):
                path = address.removeprefix("unix:")
                reader, writer = await asyncio.open_unix_connection(path, ssl=context, server_hostname="localhost")
            else:
                host, port = host_and_port(address)
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLError as error:
        # An alert is an answer in TLS: the other end wants another version, or no connection like this.
        return _Answer.TLS if "ALERT" in (error.reason or "") else _Answer.PLAIN
    except (OSError, ValueError):  # TimeoutError is an OSError
        return _Answer.NONE
    try:
        async with asyncio.timeout(_PROBE_S):
            return _Answer.TLS if await reader.read(1) else _Answer.TLS_THEN_CLOSED
    except TimeoutError:
        return _Answer.TLS
    except (OSError, ssl.SSLError):
        return _Answer.TLS_THEN_CLOSED
    finally:
        writer.transport.abort()
