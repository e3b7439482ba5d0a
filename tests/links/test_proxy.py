"""The proxy between real sockets on loopback: bytes, ends of streams, refusals."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from chaperone_common.errors import ConfigError
from link_emulator import LinkProxy, Profile
from link_emulator.profile import DirectionProfile
from tests.support.links.emulated import PLAIN, Reader, Writer, connect, echo, linked, run

ROUGH_WAY = DirectionProfile(delay_ms=2, jitter_ms=2, jitter="exponential", rate_kbit_s=50_000, queue_kbytes=8)
ROUGH = Profile(description="test", up=ROUGH_WAY, down=ROUGH_WAY)


# --- Bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [Profile.fixed(0), PLAIN, ROUGH], ids=["direct", "plain", "rough"])
def test_bytes_return_unchanged(profile: Profile) -> None:
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


def test_a_late_reader_gets_all_of_a_large_stream() -> None:
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
            question = await reader.read()  # up to its end
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
        received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: Reader, writer: Writer) -> None:
            writer.write(b"goodbye")
            writer.write_eof()
            received.set_result(await reader.read())
            writer.close()

        async with linked(serve) as proxy:
            reader, writer = await connect(proxy)
            assert await reader.read() == b"goodbye"
            writer.write(b"one more thing")
            writer.close()
            assert await received == b"one more thing"

    run(test())


# --- Refusals ---------------------------------------------------------------------------------------------------------


ELSEWHERE = "is not HOST:PORT of this machine"
REFUSED = {
    "0.0.0.0:5000": ELSEWHERE,
    "example.org:5000": ELSEWHERE,
    "10.0.0.1:1": ELSEWHERE,
    "127.0.0.1": "there is no port; write HOST:PORT",
    "unix:/tmp/x": "'/tmp/x' is no port",
    "": "it is empty; write HOST:PORT",
}


@pytest.mark.parametrize(("address", "words"), REFUSED.items())
def test_other_addresses_are_refused(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^to: {address!r}:? {words}"):
        LinkProxy(PLAIN, to=address)
    with pytest.raises(ConfigError, match=f"^listen: {address!r}:? {words}"):
        LinkProxy(PLAIN, to="127.0.0.1:1", listen=address)


def test_the_server_needs_a_port() -> None:
    with pytest.raises(ConfigError, match="to: '127.0.0.1:0': nobody listens on port 0; give the port"):
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
