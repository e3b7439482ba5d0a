"""Encodings over gRPC, on the tiny pair with a projector made at random."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import torch

from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.conditioning import Encoding
from chaperone_common.frames import Close, Closed, Encoded, EncodingRequest, Open, Opened, Verdict
from chaperone_common.session.prefixes import shortened
from chaperone_common.types import SessionId
from chaperone_common.wire import GET_CAPABILITIES, SERVICE, decode_capabilities
from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.cloud.scenario import draft
from tests.support.fakes.target import FakeTarget, fake_target
from tests.support.models.oracle import load as load_alone
from tests.support.models.projectors import random_projector
from tests.support.processes.servers import serving

WIDTH = 700  # so wide that a frame of 64 KiB has room for more than 64 rows
PROJECTOR = random_projector(width=WIDTH)
PROMPT = tuple(5 + (7 * place) % 50 for place in range(100))
OTHER = "sha256:" + "1" * 64


def asked(digest: str, session: str = "raw", *, start: int = 0, **fields: Any) -> Open:
    fields.setdefault("prompt", PROMPT)
    return opening(digest, session, encoding=EncodingRequest(PROJECTOR.spec.digest, start), **fields)


def expected_rows(pair: Path, text: Sequence[int]) -> np.ndarray:
    """Return the rows of a text, by the hidden states that transformers reports."""
    model = load_alone(pair / "cloud")
    with torch.inference_mode():
        states = model(torch.tensor([[*text]]), output_hidden_states=True, use_cache=False).hidden_states
        joined = torch.cat([states[layer][0] for layer in PROJECTOR.layers], dim=1)
        rows: np.ndarray = PROJECTOR.module(torch.device("cpu"))(joined).numpy()
    return rows


def encoding_manifest(pair: Path) -> ModelManifest:
    return load_manifest(pair / "cloud", role="cloud").model_copy(update={"projector": PROJECTOR.spec})


def encoding_fake(pair: Path) -> FakeTarget:
    model = fake_target(pair)
    model.encoding_width = WIDTH
    return model


@pytest.fixture(scope="module")
def model(tiny_pair: Path) -> TorchModel:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    return TorchModel.load(
        tiny_pair / "cloud",
        dtype="float32",
        threads=1,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
        kv_budget_mib=64,
        projector=PROJECTOR,
    )


def play(
    pair: Path,
    model: TorchModel | FakeTarget,
    scenario: Callable[[Server, grpc.aio.Channel], Awaitable[None]],
    limits: LimitsConfig | None = None,
    manifest: ModelManifest | None = None,
) -> None:
    config = CloudConfig(limits=limits or LimitsConfig(prefill_chunk_tokens=16), kv_budget_mib=64)

    async def run() -> None:
        served = serving(model, pair, config, manifest=manifest or encoding_manifest(pair))
        async with served as (server, address), raw_channel(address) as channel:
            await scenario(server, channel)

    asyncio.run(asyncio.wait_for(run(), 60))


async def received(stream: RawStream) -> tuple[list[Encoded], Opened]:
    """Read up to the Opened that reports the prompt's KV, and return the frames before it."""
    first = await stream.read()
    assert isinstance(first, Opened)
    assert not first.prefilled
    frames: list[Encoded] = []
    while isinstance(frame := await stream.read(), Encoded):
        frames.append(frame)
    assert isinstance(frame, Opened)
    assert frame.prefilled
    return frames, frame


def joined(frames: Sequence[Encoded]) -> Encoding:
    """Join frames, and check their order, their sizes, and the digest in the last one."""
    whole = frames[0].rows
    for frame in frames[1:]:
        whole = whole.followed_by(frame.rows)
    assert [bool(frame.digest) for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert frames[-1].digest == whole.digest()
    assert all(len(frame.rows) <= 64 and frame.rows.nbytes <= 1 << 16 for frame in frames)
    return whole


def close(found: Encoding, rows: np.ndarray) -> bool:
    return bool((np.abs(found.rows() - rows) <= 1.5 * found.scales[:, np.newaxis] + 1e-6).all())


async def written(stream: RawStream, text: Sequence[int], tokens: int) -> list[int]:
    """Let the cloud write some tokens, one by one, and close the stream."""
    found = [*text]
    for _ in range(tokens):
        await stream.send(draft(start=len(found)))
        verdict = await stream.read()
        assert isinstance(verdict, Verdict)
        found.append(verdict.token_id)
    await stream.send(Close(len(found), ()))
    await stream.half_close()
    assert isinstance(await stream.read(), Closed)
    return found[len(text) :]


def test_rows_arrive_before_the_prompts_kv_and_change_no_choice(
    tiny_pair: Path, model: TorchModel, digest: str
) -> None:
    rows = expected_rows(tiny_pair, PROMPT)

    async def scenario(server: Server, channel: grpc.aio.Channel) -> None:
        texts = []
        for session, start in (("with", 0), ("from later on", 40), ("last", len(PROMPT) - 1), ("without", None)):
            stream = RawStream(channel)
            frame = asked(digest, session, start=start or 0)
            await stream.send(frame if start is not None else replace(frame, encoding=None))
            frames, opened = await received(stream)
            if start is None:
                assert frames == []
            else:
                found = joined(frames)
                assert (found.start, found.end, found.width) == (start, len(PROMPT), WIDTH)
                assert close(found, rows[start:])
                assert opened.cached_tokens <= start
                assert opened.compute_us > 0
            texts.append(await written(stream, PROMPT, 8))
        assert texts[1:] == texts[:1] * 3

    play(tiny_pair, model, scenario)


def test_the_first_rows_arrive_while_the_rest_of_the_prompt_is_read(tiny_pair: Path, digest: str) -> None:
    """The model waits before its last forward until the device has the rows of the forwards before."""
    arrived = threading.Event()

    async def scenario(server: Server, channel: grpc.aio.Channel) -> None:
        stream = RawStream(channel)
        await stream.send(asked(digest))
        assert isinstance(await stream.read(), Opened)
        first = await stream.read()
        assert isinstance(first, Encoded)
        assert (first.rows.start, len(first.rows), first.digest) == (0, 64, b"")
        arrived.set()
        last = await stream.read()
        assert isinstance(last, Encoded)
        assert (last.rows.start, last.rows.end) == (64, len(PROMPT))
        assert last.digest

    def wait(requests: Sequence[Any]) -> None:
        if requests[0].tree.end == len(PROMPT):
            assert arrived.wait(30)

    model = fake_target(tiny_pair, wait)
    model.encoding_width = WIDTH
    play(tiny_pair, model, scenario, LimitsConfig(prefill_chunk_tokens=64))


def test_a_wide_row_makes_small_frames(tiny_pair: Path, digest: str) -> None:
    model = encoding_fake(tiny_pair)
    model.encoding_width = 3000

    async def scenario(server: Server, channel: grpc.aio.Channel) -> None:
        stream = RawStream(channel)
        await stream.send(asked(digest))
        frames, _ = await received(stream)
        assert joined(frames) == model.encoding(PROMPT)
        assert [len(frame.rows) for frame in frames] == [21, 21, 21, 1, 21, 15]

    play(tiny_pair, model, scenario)


def test_the_rows_of_a_next_turn_are_those_of_its_whole_prompt(tiny_pair: Path, model: TorchModel, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel) -> None:
        stream = RawStream(channel)
        await stream.send(asked(digest, "turn.1", prompt=PROMPT[:30]))
        await received(stream)
        text = (*PROMPT[:30], *await written(stream, PROMPT[:30], 5))
        prompt = (*text, *PROMPT[50:70])
        rows = expected_rows(tiny_pair, prompt)
        for session, start in (("turn.2", 0), ("turn.3", len(text))):
            stream = RawStream(channel)
            frame = asked(digest, session, start=start, prompt=prompt)
            before = SessionId("turn.1" if session == "turn.2" else "turn.2")
            await stream.send(shortened(frame, before, len(text)))
            frames, _ = await received(stream)
            found = joined(frames)
            assert (found.start, found.end) == (start, len(prompt))
            assert close(found, rows[start:])
            await stream.send(Close(len(prompt), ()))
            await stream.half_close()
            assert isinstance(await stream.read(), Closed)

    play(tiny_pair, model, scenario)


def test_a_resumed_text_has_the_rows_of_its_prompt_alone(tiny_pair: Path, model: TorchModel, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel) -> None:
        whole, resumed = RawStream(channel), RawStream(channel)
        await whole.send(asked(digest, "whole"))
        frames, _ = await received(whole)
        text = await written(whole, PROMPT, 8)
        await resumed.send(asked(digest, "resumed", committed_token_ids=tuple(text[:3])))
        again, _ = await received(resumed)
        assert close(joined(again), joined(frames).rows())
        assert await written(resumed, [*PROMPT, *text[:3]], 5) == text[3:]

    play(tiny_pair, model, scenario)


def test_another_projector_is_refused_with_both_digests(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, own: str) -> None:
        for sent in (OTHER, ""):
            stream = RawStream(channel)
            await stream.send(replace(asked(digest), encoding=EncodingRequest(sent)))
            failure = await stream.failure()
            assert failure.status == "FAILED_PRECONDITION"
            assert repr(sent) in failure.message
            assert own in failure.message
            assert "models pull" in failure.message

    play(tiny_pair, encoding_fake(tiny_pair), partial(scenario, own=PROJECTOR.spec.digest))
    without = encoding_manifest(tiny_pair).model_copy(update={"projector": None})
    play(tiny_pair, encoding_fake(tiny_pair), partial(scenario, own="this cloud encodes no prompts"), manifest=without)
    none = LimitsConfig(max_encoded_tokens=0)
    play(tiny_pair, encoding_fake(tiny_pair), partial(scenario, own="this cloud encodes no prompts"), none)


def test_rows_that_the_prompt_has_not_and_too_long_prompts_are_refused(tiny_pair: Path, digest: str) -> None:
    model = encoding_fake(tiny_pair)

    async def scenario(server: Server, channel: grpc.aio.Channel) -> None:
        for frame, message in (
            (asked(digest, prompt=PROMPT[:20], start=20), "encoding.start: 20 is outside [0, 20), the prompt"),
            (asked(digest, prompt=PROMPT[:21]), "the prompt has 21 tokens, this cloud encodes up to 20 (limits.max_"),
        ):
            stream = RawStream(channel)
            await stream.send(frame)
            failure = await stream.failure()
            assert failure.status == "INVALID_ARGUMENT"
            assert message in failure.message
        stream = RawStream(channel)
        await stream.send(asked(digest, prompt=PROMPT[:20]))
        frames, _ = await received(stream)
        assert joined(frames) == model.encoding(PROMPT[:20])

    play(tiny_pair, model, scenario, LimitsConfig(max_encoded_tokens=20))


def test_capabilities_report_projector_and_limit(tiny_pair: Path) -> None:
    for manifest, limit, expected in (
        (None, 50, (PROJECTOR.spec.digest, 50)),
        (None, 0, ("", 0)),
        (encoding_manifest(tiny_pair).model_copy(update={"projector": None}), 50, ("", 0)),
    ):

        async def scenario(server: Server, channel: grpc.aio.Channel, expected: object = expected) -> None:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
            method = channel.unary_unary(f"/{SERVICE}/{GET_CAPABILITIES}")
            found = decode_capabilities(await method(b""))
            assert (found.projector_digest, found.max_encoded_tokens) == expected

        play(tiny_pair, encoding_fake(tiny_pair), scenario, LimitsConfig(max_encoded_tokens=limit), manifest)
