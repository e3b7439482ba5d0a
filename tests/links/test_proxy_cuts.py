"""The proxy between real sockets on loopback: resets and outages."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from link_emulator import LinkProxy
from link_emulator.profile import ResetProfile
from tests.support.links.emulated import PLAIN, Reader, Serve, Writer, connect, echo, linked, run

OUTAGE_S = 1.0


class Silent:
    """A server that takes a connection, reports it, and reports its end."""

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


# --- Resets -----------------------------------------------------------------------------------------------------------


def test_an_injected_reset_reaches_both_ends() -> None:
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


def test_a_scheduled_reset_happens_by_itself() -> None:
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
            assert proxy.resets == 0  # not caused by the link

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


def test_an_absent_server_resets_the_device() -> None:
    async def test() -> None:
        with socket.socket() as taken:  # bound, but not listening: no other process gets the port
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
def test_an_outage_needs_a_valid_length(seconds: float) -> None:
    async def test() -> None:
        async with linked(echo) as proxy:
            with pytest.raises(ValueError, match="is no length of an outage"):
                proxy.outage(seconds)

    run(test())
