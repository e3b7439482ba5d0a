"""The cloud sends files of its own device model only, to known devices, and within limits."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest

from chaperone_common.errors import PermissionDenied, QuotaExceeded, Unauthenticated
from chaperone_common.frames import FetchModel
from chaperone_common.wire import FETCH_MODEL, SERVICE
from cloud_supervisor.config import LimitsConfig, QuotasConfig, TenantQuota
from cloud_supervisor.observation import ModelSent, Refused
from cloud_supervisor.security.tokens import TokenFile
from cloud_supervisor.server import Server
from edge_client import CloudSettings, pull_model
from edge_client.artefacts.from_cloud import CloudSource
from edge_client.artefacts.pull import PulledModel, pull
from tests.support.cloud.raw_stream import raw_channel
from tests.support.cloud.watched import Observed, watched
from tests.support.pulling.clouds import BIG_BYTES, TINY, at, begun, ending_of, fetched, make_big, play, transfers_of
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("file", "sha256", "offset", "status", "words"),
    [
        ("../cloud/config.json", "0" * 64, 0, "INVALID_ARGUMENT", "file: the manifest names no such file"),
        ("/etc/passwd", "0" * 64, 0, "INVALID_ARGUMENT", "file: the manifest names no such file"),
        ("manifest.json", "0" * 64, 0, "INVALID_ARGUMENT", "file: the manifest names no such file"),
        ("tokenizer.json", "0" * 64, 0, "FAILED_PRECONDITION", "sha256: tokenizer.json is another file here now"),
        ("tokenizer.json", "", 0, "FAILED_PRECONDITION", "sha256: tokenizer.json needs the manifest's SHA-256"),
        ("", "", 1 << 40, "INVALID_ARGUMENT", "offset: 1099511627776 is after the end of the file"),
        ("x" * 200, "", 0, "INVALID_ARGUMENT", "file: 200 characters, at most 128"),
    ],
)
def test_only_files_of_the_manifest_are_sent(
    home: Path, monkeypatch: pytest.MonkeyPatch, file: str, sha256: str, offset: int, status: str, words: str
) -> None:
    async def scenario(server: Server, address: str) -> None:
        got = await fetched(address, FetchModel("tiny", file, sha256, offset))
        assert got[0] == status
        assert words in got[1]
        assert got[2] == b""

    play(home, monkeypatch, scenario)


def test_bytes_that_are_no_request_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, address: str) -> None:
        assert (await fetched(address, b"\xff\xff"))[0] == "OUT_OF_RANGE"
        assert (await fetched(address, b"\x0a" + b"x" * 5000))[0] == "INVALID_ARGUMENT"

    play(home, monkeypatch, scenario)


def test_a_device_without_a_token_gets_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = home.parent / "tokens"
    token = TokenFile.create(tokens, "acme")
    config = TINY.model_copy(update={"tokens_file": tokens})
    file = home.parent / "token"
    file.write_text(token)

    async def scenario(server: Server, address: str) -> None:
        assert (await fetched(address, FetchModel("tiny")))[0] == "UNAUTHENTICATED"
        with pytest.raises(Unauthenticated, match="no token; give --token-file or CHAPERONE_TOKEN"):
            await pull_model(at(address))
        assert (await pull_model(at(address, token_file=file))).fetched_bytes > 0

    play(home, monkeypatch, scenario, config)


def test_a_transfer_of_a_revoked_token_ends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = home.parent / "tokens"
    token = TokenFile.create(tokens, "acme")
    request = make_big(home)

    async def scenario(server: Server, address: str) -> None:
        async with raw_channel(address) as channel:
            call = begun(channel, request, authorization=f"Bearer {token}")
            assert isinstance(await call.read(), bytes)
            TokenFile.revoke(tokens, token.split("_")[1])
            status, details = await ending_of(call)
        assert status == "UNAVAILABLE"
        assert "the credential was revoked" in details

    play(home, monkeypatch, scenario, TINY.model_copy(update={"tokens_file": tokens}))


def test_the_number_of_transfers_is_bounded_by_tenant_and_in_total(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_big(home)
    limits, quotas = LimitsConfig(max_transfers=2), QuotasConfig(default=TenantQuota(max_transfers=1))
    config = TINY.model_copy(update={"limits": limits, "quotas": quotas})
    observed = Observed()

    async def scenario(server: Server, address: str) -> None:
        async with raw_channel(address) as first, raw_channel(address) as second:
            calls = [begun(first, request, tenant="a"), begun(second, request, tenant="b")]
            for call in calls:
                assert isinstance(await call.read(), bytes)
            status, details, _ = await fetched(address, request, tenant="a")
            assert (status, details.startswith("quota: transfers: tenant 'a' may have 1")) == (
                "RESOURCE_EXHAUSTED",
                True,
            )
            status, details, _ = await fetched(address, request, tenant="c")
            assert (status, details.startswith("transfers: 2 are open, the limit is 2")) == ("RESOURCE_EXHAUSTED", True)
            calls[0].cancel()
            await until(lambda: transfers_of(server, "a") == 0, "the place of a transfer that was cancelled")
            assert (await fetched(address, FetchModel("tiny"), tenant="a"))[0] == "OK"
            calls[1].cancel()
            await until(
                lambda: transfers_of(server, "b") == 0, "its place, before the cloud stops and refuses to go on"
            )

    play(home, monkeypatch, scenario, config, watched(observed))
    assert {refused.reason for refused in observed.of(Refused) if isinstance(refused, Refused)} == {
        "transfers",
        "resource_exhausted",
    }


def test_a_tenant_that_has_fetched_its_share_waits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_big(home)
    quotas = QuotasConfig(default=TenantQuota(transfer_mib_per_minute=32))

    async def scenario(server: Server, address: str) -> None:
        with pytest.raises(QuotaExceeded, match="transfer_mib_per_minute: tenant 'anonymous' may have 32") as caught:
            await impatient(address)
        assert caught.value.retry_after_ms is not None
        assert caught.value.retry_after_ms > 10_000

    async def impatient(address: str) -> PulledModel:
        source = CloudSource("tiny", CloudSettings(address=address))
        try:
            return await pull("tiny", source, patience_s=0.5)
        finally:
            await source.close()

    play(home, monkeypatch, scenario, TINY.model_copy(update={"quotas": quotas}))


def test_a_cloud_can_be_set_to_send_no_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, address: str) -> None:
        with pytest.raises(
            PermissionDenied, match="transfers: this cloud sends no models; pull from a folder or a URL"
        ):
            await pull_model(at(address))

    play(home, monkeypatch, scenario, TINY.model_copy(update={"limits": LimitsConfig(max_transfers=0)}))


def test_a_device_that_does_not_read_loses_its_transfer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observed, request = Observed(), make_big(home)
    config = TINY.model_copy(update={"limits": LimitsConfig(write_timeout_s=0.2)})

    async def scenario(server: Server, address: str) -> None:
        async with raw_channel(address) as channel:
            call = begun(channel, request)
            assert isinstance(await call.read(), bytes)
            await until(lambda: bool(observed.of(Refused)), "the end of the transfer")
            call.cancel()
        await until(lambda: transfers_of(server, "nobody") == 0, "its place")

    play(home, monkeypatch, scenario, config, watched(observed))
    (refused,) = observed.of(Refused)
    assert isinstance(refused, Refused)
    assert refused.reason == "write_timeout"
    (sent,) = observed.of(ModelSent)
    assert isinstance(sent, ModelSent)
    assert 0 < sent.sent_bytes < BIG_BYTES


def test_a_request_that_never_comes_is_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, address: str) -> None:
        async with raw_channel(address) as channel:
            method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            method = channel.stream_stream(f"/{SERVICE}/{FETCH_MODEL}")
            call = method()
            assert (await call.code()) is grpc.StatusCode.DEADLINE_EXCEEDED
            empty = method()
            await empty.done_writing()
            assert (await empty.code()) is grpc.StatusCode.OUT_OF_RANGE

    play(home, monkeypatch, scenario, TINY.model_copy(update={"limits": LimitsConfig(open_timeout_s=0.2)}))


def test_a_cloud_that_stops_sends_its_devices_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_big(home)

    async def scenario(server: Server, address: str) -> None:
        async with raw_channel(address) as channel:
            call = begun(channel, request)
            assert isinstance(await call.read(), bytes)
            server.cloud.supervisor.drain()
            status, details = await ending_of(call)
        assert status == "UNAVAILABLE"
        assert "the cloud is shutting down; continue elsewhere" in details

    play(home, monkeypatch, scenario)
