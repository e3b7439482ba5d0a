"""A client for conversations with the tiny pair, and what is said in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving

SAID = ("the list of a number is", "and the first value of it", "return the name of the file")
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 5, "max_new_tokens": 24}


@asynccontextmanager
async def a_client(
    target: TargetModel, tiny_pair: Path, limits: LimitsConfig | None = None, **settings: Any
) -> AsyncIterator[tuple[EdgeClient, Server]]:
    config = CloudConfig(limits=limits or LimitsConfig())
    async with (
        serving(target, tiny_pair, config) as (server, address),
        EdgeClient(config_for(address, closing_audit=True, **settings)) as client,
    ):
        yield client, server


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))
