"""The device at ports that its settings do not fit: each problem is reported at once, with the setting to change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.clock import MonotonicClock
from chaperone_common.errors import ChaperoneError, CloudUnavailable, Unauthenticated
from chaperone_common.frames import Failure, Open, ServerFrame
from chaperone_common.types import SamplingParams, SessionId
from cloud_supervisor.security.authentication import Authenticator
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.security.tls import ServerTls
from cloud_supervisor.security.tokens import TokenFile
from edge_client import CloudSettings
from edge_client.link.addresses import Outages
from edge_client.link.credentials import read_credentials
from edge_client.link.diagnosis import reason_of
from edge_client.link.grpc_link import GrpcCloud
from edge_client.link.search import Ask, Site, first_answer
from edge_client.ports import CloudLink
from tests.support.security.servers import CAPABILITIES, GuardedService, guarded, write
from tests.support.waiting import PATIENCE_S

LONG_MS = PATIENCE_S * 1e3  # no test waits that long: a problem that is found at once never uses it up
OPEN = Open(SessionId("a-session"), "sha256:0", SamplingParams(), 9, (0,), (5, 6, 7))
Serving = AbstractAsyncContextManager[tuple[GuardedService, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make folders of certificates: ours, those of strangers, for another name, and expired ones."""
    folder = tmp_path_factory.mktemp("certificates")
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    make_certificates(folder / "ours", ["127.0.0.1"], client="acme")
    make_certificates(folder / "theirs", ["127.0.0.1"], client="acme")
    make_certificates(folder / "elsewhere", ["cloud.example.com"])
    make_certificates(folder / "old", ["127.0.0.1"], client="acme", now=long_ago, lifetime=timedelta(days=1))
    return folder


def plain(tokens_file: Path | None = None) -> Serving:
    return guarded(Authenticator(tokens_file=tokens_file, clock=MonotonicClock()))


def secure(folder: Path, *, client_ca: Path | None = None, host: str = "127.0.0.1") -> Serving:
    # An expired certificate is refused at the start of a server, so it starts in the time of the certificate.
    now = datetime(2020, 1, 1, tzinfo=UTC) if folder.name == "old" else datetime.now(UTC)
    tls = ServerTls(folder / "cert.pem", folder / "key.pem", client_ca, now=lambda: now)
    authenticator = Authenticator(client_certificates=tls.client_certificates, clock=MonotonicClock())
    return guarded(authenticator, tls.credentials(), host)


async def capabilities_of(address: str, *, timeout_ms: float = LONG_MS, **settings: object) -> object:
    """Return the capabilities of a cloud, or the error."""
    given = CloudSettings.model_validate({"address": address, **settings})
    credentials, clouds = read_credentials(given, {}), list[GrpcCloud]()

    def connect(address: str) -> tuple[GrpcCloud, Ask]:
        clouds.append(cloud := GrpcCloud(address, credentials))
        return cloud, cloud.ask if given.addresses[1:] else cloud.capabilities

    sites = [Site(each, connect) for each in given.addresses]
    try:
        return (await first_answer(sites, timeout_ms, Outages(MonotonicClock())))[1]
    except ChaperoneError as error:
        return error
    finally:
        for cloud in clouds:
            await cloud.close()


def client_of(folder: Path) -> dict[str, Any]:
    return {"cert_file": folder / "client.pem", "key_file": folder / "client-key.pem"}


PROBLEMS: list[tuple[Callable[[Path], Serving], Callable[[Path], dict[str, Any]], str]] = [
    (lambda f: secure(f / "ours"), lambda f: {}, "answers with TLS; set cloud.tls: true, and cloud.ca_file (--tls-ca)"),
    (lambda f: plain(), lambda f: {"tls": True}, "answers without TLS; give the cloud a certificate"),
    (lambda f: plain(), lambda f: {"tls": True}, "or set cloud.tls: false"),
    (
        lambda f: secure(f / "ours"),
        lambda f: {"ca_file": f / "theirs" / "ca.pem"},
        "is not from an authority in cloud.ca_file; give the file with its authority (cloud.ca_file, --tls-ca)",
    ),
    (lambda f: secure(f / "ours"), lambda f: {"tls": True}, "is not from an authority known to the public"),
    (
        lambda f: secure(f / "elsewhere"),
        lambda f: {"ca_file": f / "elsewhere" / "ca.pem"},
        "is for another name; correct cloud.address, or give the cloud a certificate for 127.0.0.1",
    ),
    (lambda f: secure(f / "old"), lambda f: {"ca_file": f / "old" / "ca.pem"}, "has expired; renew it (tls.cert_file"),
    (
        lambda f: secure(f / "ours", client_ca=f / "ours" / "ca.pem"),
        lambda f: {"ca_file": f / "ours" / "ca.pem"},
        "it may want a certificate of this device; give cloud.cert_file and cloud.key_file",
    ),
    (
        lambda f: secure(f / "ours", client_ca=f / "ours" / "ca.pem"),
        lambda f: {"ca_file": f / "ours" / "ca.pem", **client_of(f / "theirs")},
        "does not accept the certificate of this device",
    ),
]


@pytest.mark.parametrize(("serve", "settings", "words"), PROBLEMS, ids=[words for *_, words in PROBLEMS])
def test_a_connection_that_can_never_come_about_is_reported_at_once(
    folder: Path, serve: Callable[[Path], Serving], settings: Callable[[Path], dict[str, Any]], words: str
) -> None:
    async def run() -> None:
        async with serve(folder) as (service, address):
            error = await capabilities_of(address, **settings(folder))
            assert isinstance(error, CloudUnavailable)
            assert address in error.message
            assert words in error.message
            assert service.calls == []

    asyncio.run(run())


def test_credentials_that_fit_connect(folder: Path, tmp_path: Path) -> None:
    async def run() -> None:
        ours = folder / "ours"
        async with secure(ours, client_ca=ours / "ca.pem") as (service, address):
            assert await capabilities_of(address, ca_file=ours / "ca.pem", **client_of(ours)) == CAPABILITIES
            assert service.calls[0].caller.tenant == "acme"

    asyncio.run(run())


def test_a_refused_connection_is_waited_for(folder: Path) -> None:
    """The cloud may be starting, and so may the one at the other end of a tunnel."""

    async def run() -> None:
        for settings in ({}, {"ca_file": folder / "ours" / "ca.pem"}):
            error = await capabilities_of("127.0.0.1:1", timeout_ms=1500.0, **settings)
            assert isinstance(error, CloudUnavailable)
            assert (
                "127.0.0.1:1 cannot be reached within 1500 ms (cloud.connect_timeout_ms): nothing listens there; start "
                "its server, or correct cloud.address (--cloud); a server that was just started may still be loading, "
                "raise cloud.connect_timeout_ms to wait longer"
            ) in error.message
            async with closing_at_once() as address:
                error = await capabilities_of(address, timeout_ms=600.0, **settings)
                assert isinstance(error, CloudUnavailable)
                assert "cannot be reached within 600 ms" in error.message

    asyncio.run(run())


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ("errors resolving cloud.invalid:443: [address lookup failed]", "no address is known for its name"),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
            "nothing listens there",
        ),
        ("something else", ""),
    ],
)
def test_the_reason_is_said_where_waiting_did_not_help(details: str, reason: str) -> None:
    assert reason_of(details) == reason


def test_a_server_that_stops_after_a_handshake_is_waited_for(folder: Path) -> None:
    """It closes connections like one that wants another certificate, but only for a moment."""
    ours = folder / "ours"
    looks: list[asyncio.StreamWriter] = []

    async def stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(0.3):
                await reader.read(1)  # only the channel sends something first
        except TimeoutError:
            looks.append(writer)
            if len(looks) > 1:
                return
        writer.transport.abort()

    async def run() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(ours / "cert.pem", ours / "key.pem")
        context.set_alpn_protocols(["h2"])
        server = await asyncio.start_server(stop, "127.0.0.1", 0, ssl=context)
        async with server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            error = await capabilities_of(address, timeout_ms=3000.0, ca_file=ours / "ca.pem")
            assert isinstance(error, CloudUnavailable)
            assert "cannot be reached within 3000 ms" in error.message
            assert len(looks) > 1
        for writer in looks:
            writer.transport.abort()

    asyncio.run(run())


@asynccontextmanager
async def closing_at_once() -> AsyncIterator[str]:
    """Accept connections and close them, as a tunnel does whose other end is not there."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_the_first_address_that_answers_is_used(folder: Path) -> None:
    async def run() -> None:
        async with plain() as (_, address):
            assert await capabilities_of(f"127.0.0.1:1,{address}") == CAPABILITIES
        ours = folder / "ours"
        async with secure(ours) as (_, address):
            assert await capabilities_of(f"127.0.0.1:1,{address}", ca_file=ours / "ca.pem") == CAPABILITIES
            wrong = await capabilities_of(
                f"127.0.0.1:1,{address}", timeout_ms=1500.0, ca_file=folder / "theirs" / "ca.pem"
            )
            assert isinstance(wrong, CloudUnavailable)
            assert "127.0.0.1:1 cannot be reached: nothing listens there; the certificate of" in wrong.message
            assert f"the certificate of {address} is not from an authority" in wrong.message

    asyncio.run(run())


def test_addresses_that_can_never_be_reached_are_reported_at_once(folder: Path) -> None:
    """Each address has its own problem: the certificate of one is for another name, the other speaks no TLS."""

    async def run() -> None:
        elsewhere = folder / "elsewhere"
        async with secure(elsewhere) as (_, named), plain() as (_, open_port):
            error = await capabilities_of(f"{named},{open_port}", ca_file=elsewhere / "ca.pem")
            assert type(error) is CloudUnavailable
            assert f"the certificate of {named} is for another name" in error.message
            assert f"{open_port} answers without TLS" in error.message

    asyncio.run(run())


def test_each_address_is_checked_by_its_own_name(folder: Path) -> None:
    async def run() -> None:
        ours = folder / "ours"
        async with secure(folder / "elsewhere") as (_, named), secure(ours) as (_, address):
            authorities = folder / "both.pem"
            authorities.write_bytes(b"".join((folder / name / "ca.pem").read_bytes() for name in ("ours", "elsewhere")))
            assert await capabilities_of(f"{named},{address}", ca_file=authorities) == CAPABILITIES

    asyncio.run(run())


async def last_word(link: CloudLink) -> ServerFrame:
    assert await link.wait(LONG_MS)
    return link.ready()[-1].frame


def test_token_and_session_are_sent_with_each_call(tmp_path: Path) -> None:
    tokens_file, token_file = tmp_path / "tokens.json", tmp_path / "token"
    first, second = (TokenFile.create(tokens_file, name) for name in ("first", "second"))
    write(token_file, first)

    async def run() -> None:
        async with plain(tokens_file) as (service, address):
            cloud = GrpcCloud(address, read_credentials(CloudSettings(token_file=token_file), {}))
            assert await cloud.capabilities(LONG_MS) == CAPABILITIES
            token_file.write_text(second)
            link = cloud.link()
            await link.open(OPEN)
            await last_word(link)  # our frame comes back, which is no frame of a server
            link.cancel()
            await cloud.close()
            unary, stream = service.calls
            assert (unary.caller.tenant, stream.caller.tenant) == ("first", "second")
            assert stream.metadata["x-session-id"] == stream.metadata["session_id"] == "a-session"

    asyncio.run(run())


def test_refusals_keep_their_kind(tmp_path: Path) -> None:
    tokens_file = tmp_path / "tokens.json"
    token = TokenFile.create(tokens_file, "acme")
    TokenFile.revoke(tokens_file, token.split("_")[1])
    token_file = write(tmp_path / "token", token)

    async def run() -> None:
        async with plain(tokens_file) as (_, address):
            error = await capabilities_of(address)
            assert isinstance(error, Unauthenticated)
            assert error.message.endswith("authorization: no token; give --token-file or CHAPERONE_TOKEN")
            error = await capabilities_of(address, token_file=token_file)
            assert isinstance(error, Unauthenticated)
            assert "was revoked; ask the operator" in error.message
            cloud = GrpcCloud(address, read_credentials(CloudSettings(token_file=token_file), {}))
            messages: list[str] = []
            for _ in range(2):
                link = cloud.link()
                await link.open(OPEN)
                failure = await last_word(link)
                assert isinstance(failure, Failure)
                assert failure.status == "UNAUTHENTICATED"
                messages.append(failure.message)
                token_file.unlink(missing_ok=True)  # the second time it is reported without a connection
            assert "was revoked; ask the operator" in messages[0]
            assert "cloud.token_file" in messages[1]
            assert not any(token in message for message in messages)
            await cloud.close()

    asyncio.run(run())
