"""Every Python block of README.md and docs/ runs as printed, with the tiny pair."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.types import Mode
from edge_client import EdgeClient, Gate, SyncEdgeClient
from tests.support.documents import Block, blocks_of
from tests.support.fakes.target import fake_target
from tests.support.processes.endpoints import Endpoint, endpoint

SETTINGS = """
pair: tiny
cloud:
  address: {address}
device:
  threads: 1
generation:
  max_new_tokens: 8
"""
# Texts of the blocks that name the defaults: another pair, and ports that another program may have.
INSTEAD_OF = {
    "EdgeClient()": 'EdgeClient.from_config("edge.yaml")',
    "http://127.0.0.1:11435/v1": "{url}",
    "127.0.0.1:50152": "{address}",
    'model="default"': 'model="tiny"',
}


def execute(block: Block, served: Endpoint, given: Mapping[str, Any]) -> dict[str, Any]:
    """Run a block as a module of its own, and return its names; `await` may stand outside a function."""
    text, address = block.text, str(served.client.config.cloud.address)
    for printed, ours in INSTEAD_OF.items():
        text = text.replace(printed, ours.replace("{url}", served.url).replace("{address}", address))
    names = {"__name__": "example", **given}
    code = compile(text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        asyncio.run(result)
    return names


def maker_of(kind: type[Gate]) -> Callable[[Mode], Gate]:
    return lambda _: kind()


@pytest.mark.parametrize("block", blocks_of("python"), ids=str)
def test_a_block_runs(
    block: Block, tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    async def test() -> None:
        async with endpoint(fake_target(tiny_pair), tiny_pair) as served:
            address = served.client.config.cloud.address
            (tmp_path / "edge.yaml").write_text(SETTINGS.format(address=address), encoding="utf-8")

            def run() -> dict[str, Any]:
                # Of the blocks before it on the page: a client that is open, and a prompt.
                with SyncEdgeClient.from_config("edge.yaml") as client:
                    return execute(block, served, {"client": client, "prompt": "the list"})

            names = await served.in_thread(run)
            for made in names.values():
                if isinstance(made, type) and Gate in made.__mro__[1:]:
                    async with EdgeClient(served.client.config, gate=maker_of(made)) as client:
                        assert (await client.generate("the list", mode="gated", max_new_tokens=20)).text

    asyncio.run(asyncio.wait_for(test(), 150))
    shown = capsys.readouterr().out
    assert shown.strip() or "print(" not in block.text or "except" in block.text
