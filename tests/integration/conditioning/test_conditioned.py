"""Mode `conditioned`, and encodings in the other modes, with the tiny pair over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import CloudUnavailable, InvalidRequest, PeerMismatch, ProtocolViolation
from chaperone_common.frames import Encoded, Opened, ServerFrame
from chaperone_common.types import Mode, PromptInput
from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient
from edge_client.config import CloudSettings, DeviceSettings
from tests.support.cloud.fixed_cloud import fixed_cloud
from tests.support.processes.clients import IMPATIENT, NOBODY, config_for
from tests.support.processes.servers import serving

PROMPT = "the list of a number is sorted and returned by the class"
LENGTH: dict[str, Any] = {"max_new_tokens": 40}


def settings(conditioning: Any, **fields: Any) -> DeviceSettings:
    return DeviceSettings(threads=1, allow_spinning=False, conditioning=conditioning, **fields)


@asynccontextmanager
async def a_client(
    target: TorchModel, pair: Path, conditioning: str = "auto", config: CloudConfig | None = None
) -> AsyncIterator[tuple[EdgeClient, Server]]:
    async with serving(target, pair, config) as (server, address):
        edge = config_for(address).model_copy(update={"device": settings(conditioning)})
        async with EdgeClient(edge) as client:
            yield client, server


def test_a_text_takes_one_round_trip_and_stays_on_the_device(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, server):
            edge = await client.generate(PROMPT, mode="edge", **LENGTH)
            found = await client.generate(PROMPT, mode="conditioned", **LENGTH)
            assert found.token_ids != edge.token_ids  # the tiny projector's rows mean nothing, and are not small
            assert (found.stats.round_trips, found.stats.hidden_round_trips) == (1, 0)
            assert found.stats.conditioned_tokens == found.stats.prompt_tokens > 0
            assert found.stats.promises_hold is None
            assert not found.unverified
            assert edge.stats.conditioned_tokens == 0
            # An Open and a Close, without any token of the text.
            assert found.stats.bytes_up < 400
            assert server.cloud.supervisor.counters.refused == 0
            again = await client.generate(PROMPT, mode="conditioned", **LENGTH)
            assert again.token_ids == found.token_ids
            assert (again.stats.round_trips, again.stats.bytes_up) == (0, 0)  # the encoding is here

    asyncio.run(test())


def test_a_prompt_whose_encoding_is_here_needs_no_cloud(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        stack = AsyncExitStack()
        async with serving(target, tiny_pair) as (_, address):
            client = await stack.enter_async_context(EdgeClient(config_for(address, cloud=IMPATIENT)))
            found = await client.generate(PROMPT, mode="conditioned", **LENGTH)
        async with stack:
            again = await client.generate(PROMPT, mode="conditioned", **LENGTH)
            assert again.token_ids == found.token_ids
            with pytest.raises(CloudUnavailable):
                await client.generate(f"{PROMPT} and more", mode="conditioned", **LENGTH)

    asyncio.run(test())


def test_a_warm_start_is_after_the_prompt_was_read_with_its_encoding(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            request = client.request(PROMPT, mode="conditioned", warm_start=True, **LENGTH)
            warm = await client.generate(request)
            assert warm.stats.round_trips == 1
            assert warm.stats.decode_ms is not None
            assert warm.stats.decode_ms < warm.stats.total_ms
        async with a_client(target, tiny_pair) as (client, _):
            cold = await client.generate(PROMPT, mode="conditioned", **LENGTH)
            assert (cold.token_ids, cold.stats.decode_ms) == (warm.token_ids, None)

    asyncio.run(test())


def test_a_later_turn_asks_for_the_new_rows_alone(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation("be brief", mode="conditioned", max_new_tokens=12)
            first = (await chat.generate("one")).stats
            second = (await chat.generate("two")).stats
            assert second.conditioned_tokens == second.prompt_tokens
            new = second.prompt_tokens - first.prompt_tokens
            assert second.bytes_down < new * (128 + 4) + 300
            assert second.edge_cached_tokens >= first.prompt_tokens

    asyncio.run(test())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("mode", ["exact", "gated"])
def test_an_encoding_changes_no_verified_text(
    tiny_pair: Path, target: TorchModel, mode: str, temperature: float
) -> None:
    async def test() -> None:
        params: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": 80}
        async with a_client(target, tiny_pair, "on") as (client, _):
            expected = await client.generate(PROMPT, mode="cloud", **params)
            found = await client.generate(PROMPT, mode=mode, catch=1.0 if mode == "gated" else None, **params)
            if mode == "exact":
                assert found.token_ids == expected.token_ids
            assert found.stats.conditioned_tokens == found.stats.prompt_tokens
            again = await client.generate(PROMPT, mode="exact", **params)  # with the encoding from the start
            assert again.token_ids == expected.token_ids

    asyncio.run(test())


def test_without_a_measured_gain_exact_asks_for_no_encoding(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        for conditioning in ("auto", "off"):
            async with a_client(target, tiny_pair, conditioning) as (client, _):
                found = await client.generate(PROMPT, mode="exact", **LENGTH)
                assert found.stats.conditioned_tokens == 0
                assert found.stats.bytes_down < 2_000
                assert (await client.generate(PROMPT, mode="conditioned", **LENGTH)).stats.conditioned_tokens

    asyncio.run(test())


def test_a_text_is_resumed_with_its_encoding(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            whole = await client.generate(PROMPT, mode="conditioned", **LENGTH)
            final = whole.token_ids[:7]
            request = client.request(PROMPT, mode="conditioned", committed_token_ids=final, **LENGTH)
            rest = await client.generate(request)
            assert (*final, *rest.token_ids) == whole.token_ids
            assert rest.stats.conditioned_tokens == rest.stats.prompt_tokens
            assert rest.stats.promises_hold is None

    asyncio.run(test())


# --- What is refused --------------------------------------------------------------------------------------------------


def other(manifest: ModelManifest, digest: str | None) -> ModelManifest:
    projector = manifest.projector
    assert projector is not None
    changed = None if digest is None else projector.model_copy(update={"digest": digest})
    return manifest.model_copy(update={"projector": changed})


def test_a_cloud_without_the_projector_is_named_with_the_remedy(tiny_pair: Path, target: TorchModel) -> None:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")

    async def test() -> None:
        for digest, message in (
            (
                "sha256:" + "0" * 64,
                "this device's model reads encodings of sha256:.*, the cloud makes those of",
            ),
            (None, "the cloud encodes no prompts, and mode conditioned needs that"),
        ):
            async with (
                serving(target, tiny_pair, manifest=other(manifest, digest)) as (_, address),
                EdgeClient(config_for(address)) as client,
            ):
                with pytest.raises(PeerMismatch, match=message):
                    await client.generate(PROMPT, mode="conditioned", **LENGTH)
        for limits, error, message in (
            (LimitsConfig(max_encoded_tokens=5), InvalidRequest, "tokens, the cloud encodes at most 5; shorten it"),
            (LimitsConfig(max_encoded_tokens=0), PeerMismatch, "the cloud encodes no prompts"),
        ):
            async with a_client(target, tiny_pair, config=CloudConfig(pair="tiny", limits=limits)) as (client, _):
                with pytest.raises(error, match=message):
                    await client.generate(PROMPT, mode="conditioned", **LENGTH)

    asyncio.run(test())


def test_exact_does_without_an_encoding_that_the_cloud_does_not_make(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        limits = CloudConfig(pair="tiny", limits=LimitsConfig(max_encoded_tokens=5))
        async with a_client(target, tiny_pair, "on", limits) as (client, _):
            found = await client.generate(PROMPT, mode="exact", **LENGTH)
            assert found.stats.conditioned_tokens == 0
            assert found.token_ids == (await client.generate(PROMPT, mode="cloud", **LENGTH)).token_ids

    asyncio.run(test())


def test_a_lost_cloud_ends_the_text_unless_it_may_go_on_without(tiny_pair: Path) -> None:
    async def test() -> None:
        async with EdgeClient(config_for(NOBODY, cloud=IMPATIENT)) as client:
            with pytest.raises(CloudUnavailable, match="mode edge"):
                await client.generate(PROMPT, mode="conditioned", **LENGTH)
        continuing = IMPATIENT.model_copy(update={"on_loss": "continue"})
        async with EdgeClient(config_for(NOBODY, cloud=continuing)) as client:
            edge = await client.generate(PROMPT, mode="edge", **LENGTH)
            found = await client.generate(PROMPT, mode="conditioned", **LENGTH)
            assert found.token_ids == edge.token_ids
            assert found.unverified
            assert found.stats.conditioned_tokens == 0

    asyncio.run(test())


async def meet(pair: Path, frames: Iterable[ServerFrame]) -> None:
    """Let a client generate with a cloud that answers with these frames."""
    manifest = load_manifest(pair / "edge", role="edge")
    assert manifest.projector is not None
    encoding: dict[str, Any] = {"projector_digest": manifest.projector.digest, "max_encoded_tokens": 1000}
    async with fixed_cloud(pair, frames, **encoding) as address:
        cloud = CloudSettings(reconnect_timeout_ms=0)
        async with EdgeClient(config_for(address, cloud=cloud)) as client:
            await client.generate(PromptInput((5, 6, 7)), mode=Mode.CONDITIONED)


ROWS = Encoding.of(np.ones((3, 128), np.float32))
NARROW = Encoding.of(np.ones((3, 64), np.float32))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([Opened(True, 1000)], "rows of its encoding are missing"),
        ([Encoded(ROWS.between(1, 3))], r"rows \[1, 3\) of width 128, not from 0"),
        ([Encoded(NARROW, NARROW.digest())], "of width 64, not from 0 to at most 3 of width 128"),
        ([Encoded(ROWS, bytes(16))], "is not that of the rows"),
        ([Encoded(ROWS, ROWS.digest()), Encoded(ROWS, ROWS.digest())], "that were not asked for"),
    ],
    ids=["missing", "gap", "width", "digest", "twice"],
)
def test_rows_that_break_the_protocol_end_the_text(
    tiny_pair: Path, frames: Iterable[ServerFrame], message: str
) -> None:
    with pytest.raises(ProtocolViolation, match=message):
        asyncio.run(meet(tiny_pair, [Opened(False, 1000), *frames]))
