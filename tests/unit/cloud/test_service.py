"""The gRPC service on a stream that gRPC itself has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc.aio

from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.service import Context, SupervisionService
from tests.support.cloud.watched import NamedCallers, Observed


class EndedContext:
    """The context of a stream that takes no answer any more."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def auth_context(self) -> dict[str, Any]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def write(self, data: bytes) -> None:
        raise grpc.aio.InternalError("Failed send_message")

    async def abort(self, code: grpc.StatusCode, details: str, metadata: object) -> None:
        raise grpc.aio.InternalError("Failed send_status")


async def nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def test_an_answer_to_a_stream_that_has_ended_is_no_error() -> None:
    """Otherwise a device that resets streams would fill the log."""
    service = SupervisionService(NamedCallers(), LimitsConfig(), Observed())
    context = cast(Context, EndedContext())
    calls: tuple[Callable[[AsyncIterator[bytes], Context], Any], ...] = (service.supervise, service.get_capabilities)
    for call in calls:
        asyncio.run(call(nothing(), context))
    asyncio.run(service.until_idle(1.0))
