"""Beams over gRPC: a device drafts forests, and the service verifies them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from chaperone_common.beams.device import DeviceBeams
from chaperone_common.beams.draft_row import DraftRow
from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.forest import Draw, Forest
from chaperone_common.beams.frames import BeamSettings, BeamVerdict, ForestFrame, RunningBeam
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.frames import Close, Closed, EncodingRequest, Open, Opened, Prefix
from chaperone_common.sampling import warp
from chaperone_common.session.prefixes import digest_of
from chaperone_common.types import SamplingParams, SessionId
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.server import Server
from tests.support.cloud.raw_stream import RawStream, opening
from tests.support.cloud.scenario import draft, load_vocabulary, play
from tests.support.fakes.target import FakeTarget

PROMPT = (5, 6, 7)
TOKENS = 14
LIMITS = LimitsConfig(max_span_tokens=64, prefill_chunk_tokens=4)


class Device:
    """A device with a draft model that resembles the cloud's, on one stream."""

    def __init__(self, channel: grpc.aio.Channel, vocabulary: int, frame: Open, *, depth: int = 3) -> None:
        assert frame.beams is not None
        self.stream = RawStream(channel)
        self.frame = frame
        self.beams = DeviceBeams(frame.beams, frame.max_new_tokens, frame.eos_token_ids, vocabulary)
        self.twin = FakeTarget(vocabulary, disturbance=0.15)
        self.depth = depth
        self.verdicts: list[BeamVerdict] = []

    async def open(self) -> None:
        await self.stream.send(self.frame)

    async def round(self) -> None:
        """Send a forest, and take its verdict."""
        progress, sampling = self.beams.progress, self.frame.sampling
        grown = ForestDraft(
            progress, len(PROMPT), width=4, row_tokens=6, temperature=sampling.temperature, seed=sampling.seed
        )
        law = sampling if sampling.temperature else SamplingParams(temperature=1.0)
        for _ in range(min(self.depth, progress.layers_left - 1)):
            paths = [grown.numbering.path(node) for node in grown.growing]
            if not paths:
                break
            texts = [(*PROMPT, *progress.texts[start], *tokens) for start, tokens in paths]
            grown.grow([warp(self.twin.logits(text), law) for text in texts])
        await self.stream.send(self.beams.send(grown.numbering, grown.forest()))
        await self.take()

    async def take(self) -> None:
        """Take one verdict."""
        while not isinstance(verdict := await self.stream.read(), BeamVerdict):
            assert isinstance(verdict, Opened)
        self.verdicts.append(verdict)
        self.beams.receive(verdict)

    async def run(self) -> list[Hypothesis]:
        """Write to the end, close, and return the finished texts."""
        await self.open()
        while not self.beams.progress.done:
            await self.round()
        await self.close()
        return self.beams.progress.hypotheses.best

    async def close(self) -> None:
        await self.stream.send(Close(len(PROMPT), ()))
        await self.stream.half_close()
        assert await self.stream.read() == Closed()
        assert await self.stream.read() is None
        assert await self.stream.status() == "OK"


def beam_opening(digest: str, beams: BeamSettings, session: str = "raw", **fields: object) -> Open:
    """Return an Open that asks for beams."""
    return opening(digest, session, prompt=PROMPT, max_new_tokens=TOKENS, beams=beams, **fields)


def logprobs_of(twin: FakeTarget, text: tuple[int, ...]) -> float:
    """Return the log-probability of new tokens under the large model."""
    total = 0.0
    for end in range(len(text)):
        logits = twin.logits((*PROMPT, *text[:end])).astype(np.float64)
        total += logits[text[end]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    return total


def searched_alone(twin: FakeTarget, width: int, eos: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the best texts of beam search by the large model alone: all continuations, no cache, no forests."""
    running: dict[tuple[int, ...], float] = {(): 0.0}
    finished: dict[tuple[int, ...], float] = {}
    for length in range(1, TOKENS + 1):
        reached = {}
        for text, total in running.items():
            logits = twin.logits((*PROMPT, *text)).astype(np.float64)
            logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            reached.update({(*text, token): total + float(value) for token, value in enumerate(logprobs)})
        ranked = sorted(reached, key=lambda text: -reached[text])[: 2 * width]
        ended = [text for text in ranked[:width] if text[-1] in eos]
        running = {text: reached[text] for text in [text for text in ranked if text[-1] not in eos][:width]}
        finished.update({text: reached[text] / length for text in ended})
        if length == TOKENS:
            finished.update({text: value / length for text, value in running.items()})
        best = sorted(finished, key=lambda text: -finished[text])[:width]
        if len(best) == width and max(running.values()) / length <= finished[best[-1]]:
            break
    return best


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("depth", [0, 3])
def test_beam_search_finds_the_texts_of_the_large_model_alone(
    tiny_pair: Path, digest: str, num_beams: int, depth: int
) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        vocabulary = load_vocabulary(tiny_pair)
        eos = tuple(range(0, vocabulary, 12))
        device = Device(
            channel, vocabulary, beam_opening(digest, BeamSettings(num_beams), eos_token_ids=eos), depth=depth
        )
        found = await device.run()
        alone = searched_alone(FakeTarget(vocabulary), num_beams, eos)
        assert [hypothesis.token_ids for hypothesis in found] == alone

    play(tiny_pair, scenario, LIMITS)


@pytest.mark.parametrize("settings", [BeamSettings(3), BeamSettings(3, one_cache=True), BeamSettings(4, 0.9)])
def test_sampled_beams_have_the_large_models_own_log_probabilities(
    tiny_pair: Path, digest: str, settings: BeamSettings
) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        vocabulary = load_vocabulary(tiny_pair)
        sampling = SamplingParams(temperature=0.9, top_p=0.98, seed=5)
        device = Device(channel, vocabulary, beam_opening(digest, settings, sampling=sampling))
        for hypothesis in await device.run():
            assert hypothesis.logprob == pytest.approx(
                logprobs_of(FakeTarget(vocabulary), hypothesis.token_ids), rel=1e-4
            )
        assert sum(verdict.accepted for verdict in device.verdicts) > 0

    play(tiny_pair, scenario, LIMITS)


def test_the_seed_decides_the_texts_and_the_company_does_not(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        vocabulary = load_vocabulary(tiny_pair)

        def device(session: str, seed: int) -> Device:
            sampling = SamplingParams(temperature=1.0, seed=seed)
            return Device(channel, vocabulary, beam_opening(digest, BeamSettings(3), session, sampling=sampling))

        alone = await device("alone", 1).run()
        first, second, other = await asyncio.gather(
            device("first", 1).run(), device("second", 1).run(), device("other", 2).run()
        )
        assert alone == first == second
        assert alone != other

    play(tiny_pair, scenario, LIMITS)


def test_the_cloud_writes_beams_alone(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        vocabulary = load_vocabulary(tiny_pair)
        device = Device(channel, vocabulary, beam_opening(digest, BeamSettings(2)))
        await device.open()
        progress = device.beams.progress
        await device.stream.send(device.beams.send(progress.numbering(), Forest(), layers=TOKENS))
        for _ in range(TOKENS):
            await device.take()
        assert progress.done
        await device.close()
        found = [hypothesis.token_ids for hypothesis in progress.hypotheses.best]
        assert found == searched_alone(FakeTarget(vocabulary), 2, ())

    play(tiny_pair, scenario, LIMITS)


def test_a_text_is_resumed_from_its_running_beams(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        vocabulary = load_vocabulary(tiny_pair)
        eos = tuple(range(0, vocabulary, 12))
        whole = beam_opening(digest, BeamSettings(3), "whole", eos_token_ids=eos)
        expected = await Device(channel, vocabulary, whole).run()
        broken = Device(channel, vocabulary, replace(whole, session_id=SessionId("broken")))
        await broken.open()
        for _ in range(2):
            await broken.round()
        broken.stream.cancel()
        progress = broken.beams.progress
        settings = BeamSettings(3, running=tuple(progress.running), finished=tuple(progress.hypotheses.best))
        resumed = Device(channel, vocabulary, replace(broken.frame, beams=settings))
        found = await resumed.run()
        assert [hypothesis.token_ids for hypothesis in found] == [hypothesis.token_ids for hypothesis in expected]

    play(tiny_pair, scenario, LIMITS.model_copy(update={"reconnect_grace_s": 0.05}))


def test_no_text_of_beams_is_kept(tiny_pair: Path, digest: str) -> None:
    """No device refers to one: its next turn sends the whole prompt."""

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        device = Device(channel, load_vocabulary(tiny_pair), beam_opening(digest, BeamSettings(2)))
        [best, *_] = await device.run()
        text = (*PROMPT, *best.token_ids)
        prefix = Prefix(SessionId("raw"), len(text), digest_of(text))
        stream = RawStream(channel)
        await stream.send(opening(digest, "next", prompt=(1,), prefix=prefix))
        assert (await stream.failure()).status == "NOT_FOUND"

    play(tiny_pair, scenario, LIMITS.model_copy(update={"max_kept_texts": 8}))


def test_beams_share_the_tokens_with_which_they_begin(tiny_pair: Path, digest: str) -> None:
    prompt = tuple(range(5, 5 + 48))

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        vocabulary = load_vocabulary(tiny_pair)
        sampling = SamplingParams(temperature=1.5, seed=5)
        frame = opening(digest, "raw", prompt=prompt, max_new_tokens=TOKENS, beams=BeamSettings(4), sampling=sampling)
        device = Device(channel, vocabulary, frame, depth=0)
        await device.run()
        assert server.cloud.runner.kv_stats.shared_tokens >= 3 * 48

    play(tiny_pair, scenario, LIMITS)


REFUSED: dict[str, tuple[Callable[[str], Open], str]] = {
    "too many": (
        lambda digest: beam_opening(digest, BeamSettings(5)),
        "beams.num_beams: 5, and this cloud serves up to 4",
    ),
    "none": (lambda digest: beam_opening(digest, BeamSettings(0)), r"num_beams: 0 is outside [1, 8]"),
    "with committed tokens": (
        lambda digest: beam_opening(digest, BeamSettings(2), committed_token_ids=(1,)),
        "beams: they go neither with committed_token_ids",
    ),
    "with log-probabilities": (
        lambda digest: beam_opening(digest, BeamSettings(2), top_logprobs=2),
        "nor with top_logprobs",
    ),
    "an unknown token": (
        lambda digest: beam_opening(digest, BeamSettings(2, running=(RunningBeam((10**6,), -1.0, -1.0),))),
        "running: 1000000 is not in a vocabulary of",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_beams_that_cannot_be_served_are_refused(tiny_pair: Path, digest: str, case: str) -> None:
    make, words = REFUSED[case]

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(make(digest))
        failure = await stream.failure()
        assert failure.status == "INVALID_ARGUMENT"
        assert words in failure.message

    play(tiny_pair, scenario, LIMITS.model_copy(update={"max_beams": 4}))


@pytest.mark.parametrize(
    ("frame", "status", "words"),
    [
        (draft(9), "OUT_OF_RANGE", "draft: the Open asked for beams; send Forests"),
        (ForestFrame(1, Forest()), "OUT_OF_RANGE", "round: 1; the next one is 0"),
        (
            ForestFrame(0, Forest((DraftRow((10**6,), b"\0"),), ((Draw(0, 0),),))),
            "OUT_OF_RANGE",
            "forest: row: 1000000 is not in a vocabulary of",
        ),
        (ForestFrame(0, Forest(), dropped=(0,)), "OUT_OF_RANGE", "dropped: no stop strings were announced"),
    ],
)
def test_a_bad_frame_ends_its_own_stream_only(
    tiny_pair: Path, digest: str, frame: ForestFrame, status: str, words: str
) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        good = Device(channel, load_vocabulary(tiny_pair), beam_opening(digest, BeamSettings(2), "good"))
        bad = RawStream(channel)
        await bad.send(beam_opening(digest, BeamSettings(2), "bad"), frame)
        failure = await bad.failure()
        assert failure.status == status
        assert words in failure.message
        await good.run()

    play(tiny_pair, scenario, LIMITS)


def test_a_forest_of_too_many_texts_is_refused(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        device = Device(
            channel, load_vocabulary(tiny_pair), beam_opening(digest, BeamSettings(2), sampling=SamplingParams(1.0))
        )
        await device.open()
        with pytest.raises(AssertionError):  # a Failure in place of a verdict
            await device.round()

    play(tiny_pair, scenario, LIMITS.model_copy(update={"max_span_tokens": 8}))


def test_an_encoding_goes_with_no_beams(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(beam_opening(digest, BeamSettings(2), encoding=EncodingRequest("sha256:0")))
        assert (await stream.failure()).status in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")

    play(tiny_pair, scenario, LIMITS)
