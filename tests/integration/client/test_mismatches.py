"""Errors about a wrong cloud or wrong files, before anything is sent."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import (
    ModelCorrupt,
    ModelMissing,
    PromptTooLong,
    TokenizerMismatch,
    VersionMismatch,
)
from chaperone_common.frames import API_VERSION, Capabilities
from chaperone_common.types import PromptInput
from chaperone_common.wire import GET_CAPABILITIES, SERVICE, encode_capabilities
from edge_client import EdgeClient, EdgeConfig
from tests.support.processes.clients import config_for

PROMPT = "the list of a number is"


# --- A wrong cloud ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def claiming(capabilities: Capabilities | None) -> AsyncIterator[str]:
    """Serve a foreign server that answers GetCapabilities, or without `capabilities` no method."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        assert capabilities is not None
        return encode_capabilities(capabilities)

    server = grpc.aio.server()
    if capabilities is not None:
        methods: dict[str, Any] = {GET_CAPABILITIES: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def meet(capabilities: Capabilities | None, mode: str = "exact") -> None:
    async def run() -> None:
        async with claiming(capabilities) as address, EdgeClient(config_for(address)) as client:
            await client.generate(PROMPT, mode=mode)

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud"])
@pytest.mark.parametrize(("version", "who"), [(2, "update the device"), (0, "update the cloud")])
def test_another_api_version_is_refused(tiny_pair: Path, mode: str, version: int, who: str) -> None:
    digest = load_manifest(tiny_pair / "edge", role="edge").tokenizer_digest
    with pytest.raises(VersionMismatch) as caught:
        meet(Capabilities(version, "other", digest, 512, 4096, 64), mode)
    assert f"speaks {version}, this device {API_VERSION}; {who}" in caught.value.message


def test_a_server_that_does_not_know_the_service_is_refused(tiny_pair: Path) -> None:
    with pytest.raises(VersionMismatch, match=r"127\.0\.0\.1"):
        meet(None)


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud"])
def test_another_tokenizer_is_refused_with_both_digests(tiny_pair: Path, mode: str) -> None:
    mine, other = load_manifest(tiny_pair / "edge", role="edge").tokenizer_digest, "sha256:" + "0" * 64
    with pytest.raises(TokenizerMismatch) as caught:
        meet(Capabilities(API_VERSION, "other-model", other, 512, 4096, 64), mode)
    for words in (mine, other, "serves the model other-model, not 'tiny'; give --pair with the name of its pair"):
        assert words in caught.value.message


def test_a_cloud_of_another_pair_is_refused_with_the_name_of_its_pair(tiny_pair: Path) -> None:
    other = Capabilities(API_VERSION, "Qwen2.5-Coder-1.5B-Instruct", "sha256:" + "0" * 64, 512, 4096, 64)
    with pytest.raises(
        TokenizerMismatch,
        match=r"^pair: 127\.0\.0\.1:\d+ serves 'default' \(Qwen2\.5-Coder-1\.5B-Instruct\), not 'tiny'; "
        "give --pair default, or another cloud address ",
    ):
        meet(other)


def test_a_prompt_longer_than_the_clouds_context_is_refused_before_it_is_sent(tiny_pair: Path) -> None:
    digest = load_manifest(tiny_pair / "edge", role="edge").tokenizer_digest

    async def run() -> None:
        capabilities = Capabilities(API_VERSION, "short", digest, 512, 8, 64)
        async with claiming(capabilities) as address, EdgeClient(config_for(address)) as client:
            await client.generate(PromptInput((5,) * 8))

    with pytest.raises(PromptTooLong, match="8 tokens leave no room in a context of 8; shorten it"):
        asyncio.run(run())


# --- Wrong files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home_of_copies(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a pair `copied`, which a test may damage."""
    shutil.copytree(tiny_pair, tmp_path / "models" / "copied")
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    return tmp_path / "models" / "copied"


def test_a_missing_model_is_reported_with_the_remedy(home_of_copies: Path) -> None:
    with pytest.raises(ModelMissing) as caught:
        EdgeClient(EdgeConfig(pair="nothere"))
    for words in (
        str(home_of_copies.parent / "nothere" / "edge"),
        "chaperone models pull --pair nothere --cloud 127.0.0.1:50151",
    ):
        assert words in caught.value.message


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_model_is_reported_with_the_remedy(home_of_copies: Path, name: str, damage: str) -> None:
    path = home_of_copies / "edge" / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage != "missing":
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    with pytest.raises(ModelCorrupt) as caught:
        EdgeClient(EdgeConfig(pair="copied"))
    for words in (str(path), "chaperone models pull --pair copied --cloud 127.0.0.1:50151"):
        assert words in caught.value.message
