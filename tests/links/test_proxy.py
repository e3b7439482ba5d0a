"""The proxy between real sockets on loopback: bytes, ends of streams, resets, outages, refusals."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest

from common.errors import ConfigError
from link_emulator import LinkProxy, Profile
from link_emulator.alarm import Alarm
from link_emulator.profile import DirectionProfile, ResetProfile

PLAIN = Profile.fixed(rtt_ms=2)
ROUGH_WAY = DirectionProfile(delay_ms=2, jitter_ms=2, jitter="exponential", rate_kbit_s=50_000, queue_kbytes=8)
ROUGH = Profile(description="test", up=ROUGH_WAY, down=ROUGH_WAY)
OUTAGE_S = 1.0

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Coroutine[Any, Any, None]]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    serving: list[asyncio.Task[None]] = []

    def begin(reader: Reader, writer: Writer) -> None:
        serving.append(asyncio.ensure_future(serve(reader, writer)))

    listening = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await asyncio.gather(*serving)


@asynccontextmanager
async def linked(serve: Serve, profile: Profile = PLAIN, *, max_connections: int = 256) -> AsyncIterator[LinkProxy]:
    async with (
        server(serve) as address,
        LinkProxy(profile, to=address, seed=3, max_connections=max_connections) as proxy,
    ):
        yield proxy


async def connect(proxy: LinkProxy) -> tuple[Reader, Writer]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def echo(reader: Reader, writer: Writer) -> None:
    with suppress(ConnectionResetError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class Silent:
    """Takes a connection, tells that it has come, and shows how it ends."""

    def __init__(self) -> None:
        self.writer: asyncio.Future[Writer] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.writer.set_result(writer)
        self.ended.set_result(await how_it_ends(reader))
        writer.close()


async def how_it_ends(reader: Reader) -> str:
    try:
        while await reader.read(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


def abort(writer: Writer) -> None:
    """Close with RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# --- Bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [Profile.fixed(0), PLAIN, ROUGH], ids=["direct", "plain", "rough"])
def test_bytes_come_back_as_they_were(profile: Profile) -> None:
    async def test() -> None:
        random = Random(1)
        async with linked(echo, profile) as proxy:
            reader, writer = await connect(proxy)
            for size in (1, 1448, 1449, 70_000, 300_000):
                data = random.randbytes(size)
                writer.write(data)
                assert await reader.readexactly(size) == data
            writer.close()
            assert proxy.bytes_up == proxy.bytes_down == 1 + 1448 + 1449 + 70_000 + 300_000
            assert (proxy.connections, proxy.resets) == (1, 0)

    run(test())


def test_connections_do_not_mix() -> None:
    async def test() -> None:
        async with linked(echo, ROUGH) as proxy:
            connections = [await connect(proxy) for _ in range(8)]
            for number, (_, writer) in enumerate(connections):
                writer.write(bytes([number]) * 20_000)
            for number, (reader, writer) in enumerate(connections):
                assert await reader.readexactly(20_000) == bytes([number]) * 20_000
                writer.close()
            assert proxy.connections == 8

    run(test())


def test_headers_and_control_segments_are_counted() -> None:
    async def test() -> None:
        async with linked(echo) as proxy:
            reader, writer = await connect(proxy)
            writer.write(b"x" * 100)
            await reader.readexactly(100)
            assert (proxy.bytes_up, proxy.wire_bytes_up) == (100, 2 * 52 + 152)  # SYN, ACK, data
            assert (proxy.bytes_down, proxy.wire_bytes_down) == (100, 52 + 152)  # SYN and ACK, data
            writer.write_eof()
            assert await reader.read() == b""
            assert (proxy.wire_bytes_up, proxy.wire_bytes_down) == (2 * 52 + 152 + 52, 52 + 152 + 52)  # FIN each
            writer.close()

    run(test())


def test_a_reader_that_comes_late_gets_all_of_a_large_stream() -> None:
    async def test() -> None:
        late, total = asyncio.Event(), 24 * 1024 * 1024

        async def serve(reader: Reader, writer: Writer) -> None:
            await late.wait()
            seen = 0
            while data := await reader.read(1 << 20):
                seen += len(data)
            writer.write(seen.to_bytes(8, "big"))
            writer.close()

        async with linked(serve, Profile.fixed(0)) as proxy:
            reader, writer = await connect(proxy)
            writer.transport.set_write_buffer_limits(high=0)
            block, sent, drain = bytes(1 << 16), 0, None
            while sent < total:
                writer.write(block)
                sent += len(block)
                if drain is None and proxy.bytes_up > 4 * 1024 * 1024:
                    late.set()
                    drain = True
                await (writer.drain() if drain else asyncio.sleep(0))
            writer.write_eof()
            assert int.from_bytes(await reader.readexactly(8), "big") == total
            writer.close()

    run(test())


# --- Ends of streams --------------------------------------------------------------------------------------------------


def test_a_half_closed_connection_still_carries_the_answer() -> None:
    async def test() -> None:
        async def serve(reader: Reader, writer: Writer) -> None:
            question = await reader.read()  # to its end
            writer.write(question.upper())
            writer.close()

        async with linked(serve) as proxy:
            reader, writer = await connect(proxy)
            writer.write(b"question")
            writer.write_eof()
            assert await reader.read() == b"QUESTION"
            writer.close()

    run(test())


def test_the_server_may_end_first() -> None:
    async def test() -> None:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: Reader, writer: Writer) -> None:
            writer.write(b"goodbye")
            writer.write_eof()
            heard.set_result(await reader.read())
            writer.close()

        async with linked(serve) as proxy:
            reader, writer = await connect(proxy)
            assert await reader.read() == b"goodbye"
            writer.write(b"one more thing")
            writer.close()
            assert await heard == b"one more thing"

    run(test())


# --- Resets -----------------------------------------------------------------------------------------------------------


def test_an_injected_reset_is_felt_at_both_ends() -> None:
    async def test() -> None:
        silent = Silent()
        async with linked(silent.serve) as proxy:
            reader, _ = await connect(proxy)
            await silent.writer
            assert proxy.reset() == 1
            assert await how_it_ends(reader) == "reset"
            assert await silent.ended == "reset"
            assert (proxy.resets, proxy.open_connections) == (1, 0)
            assert proxy.reset() == 0

    run(test())


def test_a_scheduled_reset_comes_by_itself() -> None:
    async def test() -> None:
        silent = Silent()
        profile = PLAIN.model_copy(update={"resets": ResetProfile(at_s=(0.3,))})
        async with linked(silent.serve, profile) as proxy:
            reader, _ = await connect(proxy)
            assert await how_it_ends(reader) == "reset"
            assert proxy.resets == 1

    run(test())


def test_a_reset_by_the_server_reaches_the_device() -> None:
    async def test() -> None:
        silent = Silent()
        async with linked(silent.serve) as proxy:
            reader, _ = await connect(proxy)
            abort(await silent.writer)
            assert await how_it_ends(reader) == "reset"
            assert proxy.resets == 0  # not the link's doing

    run(test())


def test_a_reset_by_the_device_reaches_the_server() -> None:
    async def test() -> None:
        silent = Silent()
        async with linked(silent.serve) as proxy:
            _, writer = await connect(proxy)
            await silent.writer
            abort(writer)
            assert await silent.ended == "reset"

    run(test())


def test_a_server_that_is_not_there_resets_the_device() -> None:
    async def test() -> None:
        with socket.socket() as taken:  # bound, but not listening: nobody else gets the port
            taken.bind(("127.0.0.1", 0))
            async with LinkProxy(PLAIN, to=f"127.0.0.1:{taken.getsockname()[1]}") as proxy:
                reader, writer = await connect(proxy)
                writer.write(b"anybody there?")
                assert await how_it_ends(reader) == "reset"

    run(test())


def test_leaving_closes_everything() -> None:
    async def test() -> None:
        silent = Silent()
        async with linked(silent.serve) as proxy:
            reader, _ = await connect(proxy)
            await silent.writer
        assert await how_it_ends(reader) == "reset"
        assert proxy.open_connections == 0
        assert proxy.resets == 0

    run(test())


# --- Outages ----------------------------------------------------------------------------------------------------------


def test_an_outage_keeps_connections_and_stalls_their_bytes() -> None:
    async def test() -> None:
        order: list[str] = []
        async with linked(echo) as out, linked(echo) as other:
            (out_reader, out_writer), (reader, writer) = await connect(out), await connect(other)
            for each_reader, each_writer in ((out_reader, out_writer), (reader, writer)):
                each_writer.write(b"hello")
                await each_reader.readexactly(5)
            out.outage(OUTAGE_S)
            out_writer.write(b"stall")

            async def note(name: str, source: Reader) -> None:
                assert await source.readexactly(5) == b"stall"
                order.append(name)

            waiting = asyncio.create_task(note("out", out_reader))
            writer.write(b"stall")
            await note("other", reader)
            await waiting
            assert order == ["other", "out"]
            out_writer.close()
            writer.close()

    run(test())


def test_a_new_connection_waits_for_the_end_of_an_outage() -> None:
    async def test() -> None:
        order: list[str] = []

        def noting(name: str) -> Serve:
            async def serve(reader: Reader, writer: Writer) -> None:
                order.append(name)
                await echo(reader, writer)

            return serve

        async with linked(noting("out")) as out, linked(noting("other")) as other:
            out.outage(OUTAGE_S)
            (out_reader, out_writer), (reader, writer) = await connect(out), await connect(other)
            out_writer.write(b"hello")
            writer.write(b"hello")
            assert await reader.readexactly(5) == await out_reader.readexactly(5) == b"hello"
            assert order == ["other", "out"]
            out_writer.close()
            writer.close()

    run(test())


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_outage_has_a_length(seconds: float) -> None:
    async def test() -> None:
        async with linked(echo) as proxy:
            with pytest.raises(ValueError, match="is no length of an outage"):
                proxy.outage(seconds)

    run(test())


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0:5000", "example.org:5000", "127.0.0.1", "unix:/tmp/x", "", "10.0.0.1:1"])
def test_other_machines_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^to: .* is not HOST:PORT of this machine"):
        LinkProxy(PLAIN, to=address)
    with pytest.raises(ConfigError, match=r"^listen: .* is not HOST:PORT of this machine"):
        LinkProxy(PLAIN, to="127.0.0.1:1", listen=address)


def test_the_server_needs_a_port() -> None:
    with pytest.raises(ConfigError, match="to: '127.0.0.1:0' has port 0; give the server's port"):
        LinkProxy(PLAIN, to="127.0.0.1:0")


def test_a_connection_too_many_is_closed() -> None:
    async def test() -> None:
        async with linked(echo, max_connections=2) as proxy:
            connections = [await connect(proxy) for _ in range(2)]
            for reader, writer in connections:
                writer.write(b"x")
                await reader.readexactly(1)
            connections.append(await connect(proxy))
            assert await connections[2][0].read() == b""
            assert proxy.connections == 2
            for _, writer in connections:
                writer.close()

    run(test())


# --- Alarm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precise", [True, False])
def test_alarms_ring_in_order_and_never_early(precise: bool) -> None:
    async def test() -> None:
        alarm, began_s = Alarm(precise=precise), time.monotonic()
        assert alarm.precise is precise
        rung: list[tuple[int, bool]] = []
        done = asyncio.Event()
        for number in (3, 1, 2, 0):
            when_s = began_s + number * 0.002
            alarm.at(when_s, lambda number=number, when_s=when_s: rung.append((number, time.monotonic() >= when_s)))  # type: ignore[misc]
        alarm.at(began_s + 0.008, done.set)
        await done.wait()
        assert rung == [(number, True) for number in range(4)]
        alarm.at(began_s + 0.009, done.clear)
        alarm.close()

    run(test())
