"""Log-probabilities over real gRPC: each final token has one, of the model that vouches for it, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import CloudLost
from chaperone_common.frames import Capabilities, Draft, Opened, Verdict
from chaperone_common.logprobs import LogprobSource, TokenLogprobs
from chaperone_common.types import Origin, SamplingParams
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, Generation, InvalidRequest
from edge_client.config import CloudSettings, PlannerSettings
from edge_client.link.grpc_link import GrpcCloud
from edge_client.model.drafter import ChoosingDrafter
from edge_client.ports import DraftModel
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.fakes.target import fake_target
from tests.support.links.forwarder import forwarding
from tests.support.models import oracle
from tests.support.processes.clients import NOBODY, config_for
from tests.support.processes.servers import serving

PROMPT = "the list of a number is"
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 5, "max_new_tokens": 60}
REPORTED: dict[str, Any] = {"logprobs": True, "top_logprobs": 4}
PLANNERS = (
    PlannerSettings(),
    PlannerSettings(policy="fixed", span_tokens=4, spans_in_flight=3, run_ahead_tokens=24, takeover_tokens=5),
)


@pytest.fixture(scope="module")
def reference(tiny_pair: Path) -> Any:
    return oracle.load(tiny_pair / "cloud")


def expected_of(reference: Any, pair: Path, prompt: Sequence[int], text: Sequence[int]) -> list[dict[int, float]]:
    """Return the large model's log-probability of each token, at each position of a text; in float64."""
    vocabulary = load_manifest(pair / "cloud", role="cloud").vocabulary_size
    rows = oracle.rows(reference, prompt, text, vocabulary_size=vocabulary).astype(np.float64)
    rows -= np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) + rows.max(1, keepdims=True)
    return [dict(enumerate(row.tolist())) for row in rows]


def check_of_cloud(found: TokenLogprobs, token_id: int, expected: dict[int, float], count: int = 4) -> None:
    assert found.chosen.token_id == token_id
    assert found.chosen.logprob == pytest.approx(expected[token_id], abs=2e-3)
    top = [(each.token_id, each.logprob) for each in found.top_logprobs]
    assert [value for _, value in top] == pytest.approx(sorted(expected.values(), reverse=True)[:count], abs=2e-3)
    for other, value in top:
        assert value == pytest.approx(expected[other], abs=2e-3)


@pytest.mark.parametrize("planner", PLANNERS, ids=["adaptive", "takeovers"])
@pytest.mark.parametrize("mode", ["exact", "cloud", "gated", "edge"])
def test_every_token_has_the_number_of_the_model_that_vouches_for_it(
    tiny_pair: Path, target: TorchModel, reference: Any, mode: str, planner: PlannerSettings
) -> None:
    async def write() -> tuple[Generation, Generation]:
        async with (
            serving(target, tiny_pair) as (_, address),
            EdgeClient(config_for(address, planner=planner, risk=0.4)) as client,
        ):
            written = await client.generate(PROMPT, mode=mode, **SAMPLED, **REPORTED)
            return written, await client.generate(PROMPT, mode=mode, **SAMPLED)

    result, plain = asyncio.run(write())
    assert plain.logprobs is None
    assert result.logprobs is not None
    assert len(result.logprobs) == len(result.token_ids) == len(result.origins)
    if mode != "gated":  # there, timing decides which tokens are asked about
        assert result.token_ids == plain.token_ids
    expected = expected_of(reference, tiny_pair, result.prompt_token_ids, result.token_ids)
    of_cloud = 0
    for found, token_id, origin, row in zip(result.logprobs, result.token_ids, result.origins, expected, strict=True):
        assert found.source is (LogprobSource.CLOUD if origin.judged else LogprobSource.DEVICE)
        assert found.chosen.token_id == token_id
        assert len(found.top_logprobs) == 4
        if origin.judged:
            of_cloud += 1
            check_of_cloud(found, token_id, row)
    counts = {"exact": len(expected), "cloud": len(expected), "edge": 0}
    assert of_cloud == counts.get(mode, of_cloud)
    shown = b"".join(found.chosen.token_bytes for found in result.logprobs)
    assert shown.decode("utf-8", "replace") == result.text


def test_a_reset_connection_loses_and_repeats_no_entry(tiny_pair: Path, target: TorchModel, reference: Any) -> None:
    async def write() -> tuple[list[TokenLogprobs], Generation]:
        async with (
            serving(target, tiny_pair, reconnect_grace_s=30.0) as (_, address),
            forwarding(address) as forwarder,
            EdgeClient(config_for(forwarder.address, planner=PLANNERS[1])) as client,
        ):
            run, found = client.stream(PROMPT, mode="exact", **SAMPLED, **REPORTED), []
            async for event in run:
                if (entry := getattr(event, "logprobs", None)) is not None:
                    found.append(entry)
                    if len(found) in (3, 20):
                        forwarder.reset()
            return found, await client.generate(PROMPT, mode="exact", **SAMPLED)

    found, whole = asyncio.run(write())
    expected = expected_of(reference, tiny_pair, whole.prompt_token_ids, whole.token_ids)
    for entry, token_id, row in zip(found, whole.token_ids, expected, strict=True):
        check_of_cloud(entry, token_id, row)


def test_a_resumed_text_goes_on_reporting(tiny_pair: Path, target: TorchModel, reference: Any) -> None:
    """The first part fails with the loss of the cloud; the second one, of another client, has the rest."""
    patience = CloudSettings(reconnect_timeout_ms=0)

    async def write() -> tuple[Generation, Generation, tuple[TokenLogprobs, ...]]:
        async with serving(target, tiny_pair) as (_, address):
            async with forwarding(address) as forwarder:
                config = config_for(forwarder.address, planner=PLANNERS[1], cloud=patience)
                async with EdgeClient(config) as client:
                    try:
                        async for event in client.stream(PROMPT, mode="exact", **SAMPLED, **REPORTED):
                            if getattr(event, "position", 0) == len(client.prepare(PROMPT).token_ids) + 8:
                                forwarder.reset()
                            if (error := getattr(event, "error", None)) is not None:
                                raise error
                    except CloudLost as error:
                        partial = error.partial
            assert partial is not None
            assert partial.logprobs is not None
            assert len(partial.logprobs) == len(partial.token_ids)
            async with EdgeClient(config_for(address)) as client:
                rest = await client.generate(partial)
                return rest, await client.generate(PROMPT, mode="exact", **SAMPLED), partial.logprobs

    rest, whole, first = asyncio.run(write())
    assert rest.logprobs is not None
    expected = expected_of(reference, tiny_pair, whole.prompt_token_ids, whole.token_ids)
    for found, token_id, row in zip((*first, *rest.logprobs), whole.token_ids, expected, strict=True):
        check_of_cloud(found, token_id, row)


def test_without_a_cloud_the_numbers_are_the_devices(tiny_pair: Path) -> None:
    async def write() -> Generation:
        cloud = CloudSettings(connect_timeout_ms=200.0, on_loss="continue")
        async with EdgeClient(config_for(NOBODY, cloud=cloud)) as client:
            return await client.generate(PROMPT, mode="exact", max_new_tokens=8, **REPORTED)

    result = asyncio.run(write())
    assert {*result.origins} == {Origin.UNVERIFIED}
    assert result.logprobs is not None
    for found, token_id in zip(result.logprobs, result.token_ids, strict=True):
        assert found.source is LogprobSource.DEVICE
        assert (found.top_logprobs[0].token_id, found.chosen.token_id) == (token_id, token_id), "greedy"
        assert found.chosen.logprob == found.top_logprobs[0].logprob < 0


def test_the_cloud_measures_only_tokens_that_are_not_final(tiny_pair: Path) -> None:
    """It reads fifteen skipped tokens and a fire; of the 17 choices it can send two."""
    forwards: list[ForwardRequest] = []
    digest = load_manifest(tiny_pair / "cloud", role="cloud").tokenizer_digest

    async def ask() -> Verdict:
        target = fake_target(tiny_pair, forwards.extend)
        async with serving(target, tiny_pair) as (_, address), raw_channel(address) as channel:
            stream = RawStream(channel)
            skipped = tuple(int(target.logits(range(5, 8)).argmax()) for _ in range(15))
            await stream.send(opening(digest, top_logprobs=1), Draft(0, 3, (*skipped, 9), (), 3 + 15))
            while not isinstance(frame := await stream.read(), Verdict):
                assert isinstance(frame, Opened)
            stream.cancel()
            return frame

    verdict = asyncio.run(ask())
    asked = [forward for forward in forwards if forward.num_choices]
    assert sum(forward.num_choices for forward in asked) == 17
    assert sum(forward.num_choices - forward.first_reported for forward in asked) == 2
    assert 1 <= len(verdict.logprobs) == verdict.position + 1 - 18 <= 2


class Silent:
    """A drafter of its own kind, which knows nothing of log-probabilities."""

    __slots__ = ("_inner", "adopt", "branches", "close", "fork", "rewind", "step", "step_rows")

    def __init__(self, model: DraftModel, sampling: SamplingParams) -> None:
        self._inner = inner = ChoosingDrafter(model, sampling)
        self.step, self.step_rows, self.branches = inner.step, inner.step_rows, inner.branches
        self.rewind, self.fork, self.adopt, self.close = inner.rewind, inner.fork, inner.adopt, inner.close

    @property
    def length(self) -> int:
        return self._inner.length


class Deaf(Silent):
    """The same without slots: it takes `top_logprobs`, and reports none."""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Silent, "logprobs: Silent takes no top_logprobs; leave it out, or use ChoosingDrafter"),
        (Deaf, "logprobs: this drafter reports none; leave it out, or use ChoosingDrafter"),
    ],
)
def test_a_drafter_that_reports_none_serves_all_other_requests(
    tiny_pair: Path, kind: type[Silent], message: str
) -> None:
    drafter: Any = kind

    async def write() -> None:
        async with EdgeClient(config_for(NOBODY), drafter=drafter) as client:
            plain = await client.generate(PROMPT, mode="edge", max_new_tokens=4)
            with pytest.raises(InvalidRequest) as refused:
                await client.generate(PROMPT, mode="edge", max_new_tokens=4, **REPORTED)
            assert refused.value.message == message
            assert refused.value.partial is None or not refused.value.partial.token_ids
            again = await client.generate(PROMPT, mode="edge", max_new_tokens=4)
            assert again.token_ids == plain.token_ids

    asyncio.run(write())


class OldCloud(GrpcCloud):
    """A cloud that reports no log-probabilities, or few."""

    most: int | None = None

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        return replace(await super().capabilities(timeout_ms), max_top_logprobs=self.most)


@pytest.mark.parametrize(
    ("most", "message"),
    [(None, "reports none; update it, or leave this out"), (3, "top_logprobs: 4, and the cloud reports at most 3")],
)
def test_a_cloud_that_cannot_report_them_is_named_before_the_text(
    tiny_pair: Path, target: TorchModel, most: int | None, message: str
) -> None:
    async def write() -> None:
        async with serving(target, tiny_pair) as (_, address):
            cloud = OldCloud(address)
            cloud.most = most
            async with EdgeClient(config_for(address), cloud=cloud) as client:
                with pytest.raises(InvalidRequest, match=message):
                    await client.generate(PROMPT, mode="exact", **REPORTED)
                assert (await client.generate(PROMPT, mode="edge", max_new_tokens=2, **REPORTED)).logprobs is not None

    asyncio.run(write())
