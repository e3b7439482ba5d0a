"""A cloud that breaks the protocol ends a generation with an error that names the reason; nothing hangs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Continuation, Opened, ServerFrame, Verdict
from chaperone_common.types import PromptInput
from edge_client import EdgeClient
from tests.support.cloud.fixed_cloud import CONTEXT_TOKENS, fixed_cloud
from tests.support.processes.clients import config_for

PROMPT = PromptInput((5, 6, 7))
OPENED = Opened(True, CONTEXT_TOKENS)


async def meet(tiny_pair: Path, frames: Iterable[ServerFrame | bytes], *, max_span_tokens: int = 64) -> None:
    """Let a client generate with a cloud that answers with these frames."""
    async with (
        fixed_cloud(tiny_pair, frames, max_span_tokens=max_span_tokens) as address,
        EdgeClient(config_for(address)) as client,
    ):
        await client.generate(PROMPT, mode="cloud")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (itertools.repeat(OPENED, 10_000), "frames in a row that change nothing"),
        ([OPENED, Verdict(0, 900, 1)], "verdict at position 900 answers a span"),
        ([OPENED, b"\x12\x00\x1a\x00" * 100], "it has more than 16 fields"),
        ([OPENED, b"\x0a" * 5], "bytes that are not a SuperviseResponse"),
        ([OPENED, Continuation(0, (1,) * 1000, False)], "continuation starts at 0"),
        ([OPENED, Verdict(0, 0, 1, tuple(range(5000)))], "deviations: 5000 from the cloud, at most 4096"),
    ],
    ids=["endless", "other span", "many fields", "no frame", "continuation", "large"],
)
def test_a_cloud_that_breaks_the_protocol_ends_the_text(
    tiny_pair: Path, frames: Iterable[ServerFrame | bytes], message: str
) -> None:
    with pytest.raises(ProtocolViolation, match=message):
        asyncio.run(meet(tiny_pair, frames))


def test_a_cloud_that_reads_no_token_is_refused_before_the_text(tiny_pair: Path) -> None:
    with pytest.raises(ProtocolViolation, match="max_span_tokens: 0"):
        asyncio.run(meet(tiny_pair, [], max_span_tokens=0))


def test_an_id_outside_the_vocabulary_is_refused(tiny_pair: Path) -> None:
    """The device knows the size of its vocabulary from its own model."""
    vocabulary = load_manifest(tiny_pair / "edge", role="edge").vocabulary_size
    with pytest.raises(ProtocolViolation, match=f"token_ids: {vocabulary} is not in a vocabulary of {vocabulary}"):
        asyncio.run(meet(tiny_pair, [OPENED, Verdict(0, len(PROMPT.token_ids), vocabulary)]))
