"""TLS of a server on a loopback port: rotation in mid-stream, and client certificates."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import grpc
import grpc.aio
import pytest

from chaperone_common.wire import SERVICE, SUPERVISE
from cloud_supervisor.security.authentication import Authenticator
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.security.tls import ServerTls
from tests.support.fakes.clock import ManualClock
from tests.support.security.servers import guarded
from tests.support.waiting import PATIENCE_S


def server_tls(folder: Path, clock: ManualClock, *, client_ca: bool = False) -> ServerTls:
    ca_file = folder / "ca.pem" if client_ca else None
    return ServerTls(folder / "cert.pem", folder / "key.pem", ca_file, clock=clock)


def channel(address: str, folder: Path, *, client: Path | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(),
        (client / "client-key.pem").read_bytes() if client is not None else None,
        (client / "client.pem").read_bytes() if client is not None else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=(("grpc.use_local_subchannel_pool", 1),))


async def echo(call: grpc.aio.StreamStreamCall[bytes, bytes], data: bytes) -> bytes:
    await call.write(data)
    answer = await asyncio.wait_for(call.read(), PATIENCE_S)
    assert isinstance(answer, bytes)
    return answer


def opened(over: grpc.aio.Channel) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = over.stream_stream(f"/{SERVICE}/{SUPERVISE}")
    return method()


async def shown_by(address: str) -> str:
    """Return the certificate that the server shows to a new connection."""
    host, _, port = address.rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


def test_a_new_certificate_is_used_while_a_stream_stays_open(tmp_path: Path) -> None:
    old, clock = tmp_path / "old", ManualClock()
    make_certificates(old, ["127.0.0.1"])
    first_ca = (old / "ca.pem").read_bytes()
    first = (old / "cert.pem").read_text()

    async def run() -> None:
        tls = server_tls(old, clock)
        async with (
            guarded(Authenticator(clock=clock), tls.credentials()) as (_, address),
            channel(address, old) as before,
        ):
            stream = opened(before)
            assert await echo(stream, b"one") == b"one"
            expires_at = tls.expires_at
            make_certificates(old, ["127.0.0.1"], force=True)
            assert await shown_by(address) == first, "it looks once a second"
            clock.seconds = 1.0
            assert await shown_by(address) == (old / "cert.pem").read_text() != first
            assert await shown_by(address) == (old / "cert.pem").read_text(), "and stays"
            assert tls.expires_at >= expires_at
            assert await echo(stream, b"two") == b"two"
            async with channel(address, old) as after:
                assert await echo(opened(after), b"three") == b"three"
            await stream.done_writing()
        assert first_ca != (old / "ca.pem").read_bytes()

    asyncio.run(run())


def test_broken_files_leave_the_certificate_in_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    make_certificates(tmp_path, ["127.0.0.1"])
    first = (tmp_path / "cert.pem").read_text()

    async def run() -> None:
        tls = server_tls(tmp_path, clock)
        async with guarded(Authenticator(clock=clock), tls.credentials()) as (_, address):
            (tmp_path / "key.pem").write_text("half a k")
            for clock.seconds in (1.0, 2.0, 3.0):
                assert await shown_by(address) == first
            make_certificates(tmp_path, ["127.0.0.1"], force=True)
            clock.seconds = 4.0
            assert await shown_by(address) == (tmp_path / "cert.pem").read_text() != first

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [record.message for record in caplog.records] == [
        f"tls.key_file: {tmp_path / 'key.pem'}: it holds no private key in PEM; what was loaded before stays in use"
    ]


def test_a_client_is_named_by_its_certificate_or_not_let_in(tmp_path: Path) -> None:
    ours, theirs, clock = tmp_path / "ours", tmp_path / "theirs", ManualClock()
    make_certificates(ours, ["127.0.0.1"], client="acme")
    make_certificates(theirs, ["127.0.0.1"], client="acme")

    async def run() -> None:
        tls = server_tls(ours, clock, client_ca=True)
        authenticator = Authenticator(client_certificates=tls.client_certificates, clock=clock)
        async with guarded(authenticator, tls.credentials()) as (service, address):
            async with channel(address, ours, client=ours) as known:
                assert await echo(opened(known), b"x") == b"x"
            ((caller, _),) = service.calls
            assert (caller.tenant, caller.peer) == ("acme", "127.0.0.1")
            for client in (None, theirs):
                async with channel(address, ours, client=client) as stranger:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await echo(opened(stranger), b"x")
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert len(service.calls) == 1

    asyncio.run(run())
