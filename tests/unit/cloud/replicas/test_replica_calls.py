"""Calls in a replica: messages are pulled, and a status goes with the last one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from chaperone_common.errors import PermissionDenied
from chaperone_common.frames import Failure
from cloud_supervisor.caller import LOCAL, Caller
from cloud_supervisor.hosting.entrance import LocalCallers
from cloud_supervisor.hosting.replica_calls import ReplicaCall, until_lost
from cloud_supervisor.service import AuthContext, Metadata

FAILURE = Failure("RESOURCE_EXHAUSTED", "sessions: full", retry_after_ms=250)


class Context:
    """Ray Serve's copy of a context, with the status that was set."""

    def __init__(self) -> None:
        self.status: list[Any] = []

    def invocation_metadata(self) -> Metadata:
        return [("session_id", "one")]

    def auth_context(self) -> AuthContext:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:4711"

    def set_code(self, code: Any) -> None:
        self.status.append(code.name)

    def set_details(self, details: str) -> None:
        self.status.append(details)

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        self.status.append(dict(trailing_metadata)["chaperone-retry-after-ms"])


def call_of(context: Context) -> ReplicaCall:
    return ReplicaCall(context, lambda failure: failure.message.encode())


async def pulled(call: ReplicaCall, serve: Any) -> list[bytes]:
    async with aclosing(call.answers(serve)) as answers:
        return [message.SerializeToString() async for message in answers]


def test_a_write_waits_until_its_message_was_taken() -> None:
    written: list[int] = []

    async def serve(call: ReplicaCall) -> None:
        for number in range(2):
            await call.write(bytes([number]))
            written.append(number)

    async def scenario() -> None:
        async with aclosing(call_of(Context()).answers(serve)) as answers:
            assert (await anext(answers)).SerializeToString() == b"\x00"
            assert written == []
            assert (await anext(answers)).SerializeToString() == b"\x01"
            assert written == [0]

    asyncio.run(scenario())


@pytest.mark.parametrize("frame_s", [None, 5.0])
def test_a_status_is_set_before_the_message_that_takes_it_along(frame_s: float | None) -> None:
    context = Context()

    async def serve(call: ReplicaCall) -> None:
        await call.write(b"first")
        await call.abort(FAILURE, frame_s=frame_s)

    assert asyncio.run(pulled(call_of(context), serve)) == [b"first", b"sessions: full"]
    assert context.status == ["RESOURCE_EXHAUSTED", "sessions: full", "250"]


def test_a_bug_ends_the_call_with_its_error() -> None:
    async def serve(call: ReplicaCall) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(pulled(call_of(Context()), serve))


def test_a_client_that_leaves_ends_the_service_of_its_call() -> None:
    seen: list[str] = []

    async def serve(call: ReplicaCall) -> None:
        call.on_end(lambda: seen.append("end"))
        try:
            await call.write(b"first")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def scenario() -> None:
        async with aclosing(call_of(Context()).answers(serve)) as answers:
            await anext(answers)

    asyncio.run(scenario())
    assert seen == ["cancelled", "end"]


def test_messages_end_where_the_proxy_is_lost() -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("the actor died")

    async def scenario() -> list[bytes]:
        return [data async for data in until_lost(requests())]

    assert asyncio.run(scenario()) == [b"first"]


class Everybody:
    """Lets everybody in."""

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext, peer: str) -> Caller:
        return LOCAL

    def valid(self, caller: Caller) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:1", "ipv6:[::1]:1", "ipv6:%5B::1%5D:1", "ipv6:[::ffff:127.0.0.1]:1"])
def test_callers_of_this_machine_may_come_in(peer: str) -> None:
    assert asyncio.run(LocalCallers(Everybody()).authenticate((), {}, peer)) == LOCAL


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.1:1", "ipv6:[2001:db8::1]:1", "unknown", ""])
def test_callers_of_other_machines_are_refused(peer: str) -> None:
    with pytest.raises(PermissionDenied, match="only for its own machine"):
        asyncio.run(LocalCallers(Everybody()).authenticate((), {}, peer))
