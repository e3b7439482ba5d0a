"""The device SDK against a real server with the tiny pair: parity, concurrency, text, and numbers that add up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from cloud_supervisor.ports import Reading
from cloud_supervisor.server import Server
from cloud_supervisor.torch_model import TorchModel
from common.config import load_manifest
from common.errors import ConfigError, InvalidRequest, PromptTooLong
from common.session import Committed, Event, Finished
from common.types import FinishReason, Mode, PromptInput
from edge_client import EdgeClient, EdgeConfig, Generation, SyncEdgeClient
from edge_client.config import PlannerSettings
from edge_client.generation import Collector
from edge_client.output import CommittedText
from tests.integration.loopback import serving
from tests.integration.staging import config_for, ending_of, serving_in_thread, until

PROMPT = "the list of a number is"
LOCKSTEP = PlannerSettings(span_tokens=4, spans_in_flight=1, run_ahead_tokens=1)
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11, "max_new_tokens": 60}
TIMED = ("_ms", "_j", "bytes_up", "bytes_down", "round_trips")

T = TypeVar("T")


@pytest.fixture(scope="module")
def target(tiny_pair: Path) -> TorchModel:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    return TorchModel.load(
        tiny_pair / "cloud",
        dtype="float32",
        threads=1,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
    )


@pytest.fixture(scope="module")
def client(tiny_pair: Path) -> EdgeClient:
    return EdgeClient(EdgeConfig(pair="tiny"))


@asynccontextmanager
async def both_ends(target: TorchModel, pair: Path, **settings: Any) -> AsyncIterator[tuple[EdgeClient, Server]]:
    async with serving(target, pair) as (server, address), EdgeClient(config_for(address, **settings)) as client:
        yield client, server


def run(
    target: TorchModel, pair: Path, scene: Callable[[EdgeClient, Server], Coroutine[Any, Any, T]], **settings: Any
) -> T:
    async def play() -> T:
        async with both_ends(target, pair, **settings) as (client, server):
            return await scene(client, server)

    return asyncio.run(play())


def timeless(event: Event) -> dict[str, Any]:
    """An event by value, but for what a clock decides."""
    fields = asdict(event)
    if "stats" in fields:
        fields["stats"] = {name: value for name, value in fields["stats"].items() if not name.endswith(TIMED)}
    return {"type": type(event).__name__, **fields}


# --- Both faces are the same -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_async_and_sync_tell_the_same(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    parameters = {**SAMPLED, "mode": mode}

    async def collect(address: str) -> tuple[list[Event], Generation]:
        async with EdgeClient(config) as client:
            return [event async for event in client.stream(PROMPT, **parameters)], await client.generate(
                PROMPT, **parameters
            )

    with serving_in_thread(target, tiny_pair) as (_, address):
        config = config_for(address, planner=LOCKSTEP, closing_audit=True)
        events, generation = asyncio.run(collect(address))
        with SyncEdgeClient(config) as client:
            sync_events = list(client.stream(PROMPT, **parameters))
            sync_generation = client.generate(PROMPT, **parameters)
            assert client.request(PROMPT, **parameters) == client.request(client.prepare(PROMPT), **parameters)
        client.close()  # once more does no harm
    assert [timeless(event) for event in sync_events] == [timeless(event) for event in events]
    assert sync_generation.token_ids == generation.token_ids
    assert sync_generation.text == generation.text


def test_sync_raises_what_async_raises(tiny_pair: Path) -> None:
    with SyncEdgeClient(config_for("127.0.0.1:1")) as client:
        with pytest.raises(InvalidRequest, match="temperature: -1"):
            client.generate(PROMPT, temperature=-1)
        with pytest.raises(InvalidRequest, match="temperature: -1"):
            next(iter(client.stream(PROMPT, temperature=-1)))


def test_leaving_the_sync_stream_early_ends_the_session(tiny_pair: Path, target: TorchModel) -> None:
    with serving_in_thread(target, tiny_pair) as (server, address):
        with SyncEdgeClient(config_for(address)) as client:
            for event in client.stream(PROMPT, max_new_tokens=2000):
                if isinstance(event, Committed):
                    break
            asyncio.run(until(lambda: server.supervisor.sessions == 0, "the session ended"))
            again = client.generate(PROMPT, max_new_tokens=5)
        assert again.stats.completion_tokens == 5
        asyncio.run(until(lambda: server.kv_store.stats.bytes_used == 0, "the KV is freed"))


# --- One client, many generations ------------------------------------------------------------------------------------


def test_concurrent_generations_do_not_disturb_each_other(tiny_pair: Path, target: TorchModel) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": f"{PROMPT} {index}", "mode": mode, "temperature": 0.8, "seed": index, "max_new_tokens": 40}
        for index, mode in enumerate(["exact", "cloud", "edge", "exact", "exact", "edge", "cloud", "exact"])
    ]

    async def scene(client: EdgeClient, server: Server) -> None:
        together = await asyncio.gather(*(client.generate(**request) for request in requests))
        alone = [await client.generate(**request) for request in requests]
        assert [result.token_ids for result in together] == [result.token_ids for result in alone]
        assert [result.text for result in together] == [result.text for result in alone]

    run(target, tiny_pair, scene)


def test_leaving_the_stream_early_ends_the_session(tiny_pair: Path, target: TorchModel) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        for mode in ("exact", "gated", "cloud"):
            async with aclosing(client.stream(PROMPT, mode=mode, max_new_tokens=2000)) as events:
                async for event in events:
                    if isinstance(event, Committed):
                        assert server.supervisor.sessions == 1
                        break
            await until(lambda: server.supervisor.sessions == 0, "the session ended")
            await until(lambda: server.kv_store.stats.bytes_used == 0, "the KV is freed")

    run(target, tiny_pair, scene)


def test_cancelling_the_task_ends_the_session(tiny_pair: Path, target: TorchModel) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        task = asyncio.create_task(client.generate(PROMPT, max_new_tokens=3000))
        await until(lambda: server.kv_store.stats.bytes_used > 0, "the cloud reads")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.supervisor.sessions == 0, "the session ended")
        assert (await client.generate(PROMPT, max_new_tokens=5)).stats.completion_tokens == 5

    run(target, tiny_pair, scene)


# --- Text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_the_text_is_that_of_the_tokens(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        for seed in range(4):
            parameters: dict[str, Any] = {"temperature": 1.2, "seed": seed, "max_new_tokens": 80, "mode": mode}
            events = [event async for event in client.stream(PROMPT, **parameters)]
            assert isinstance(ending_of(events), Finished)
            collected = Collector(client.request(PROMPT, **parameters))
            for event in events:
                collected.add(event)
            result = collected.result()
            assert result.text == client.tokenizer.decode(result.token_ids)
            assert "".join(getattr(event, "text", "") for event in events) == result.text
            assert len(result.origins) == len(result.token_ids)
            assert result.prompt_token_ids == client.prepare(PROMPT).token_ids

    run(target, tiny_pair, scene)


@pytest.mark.parametrize("mode", Mode)
def test_a_stop_string_cuts_the_text(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        whole = await client.generate(PROMPT, mode=mode, max_new_tokens=60)
        middle = len(whole.text) // 2
        stop = whole.text[middle : middle + 3]
        cut = await client.generate(PROMPT, mode=mode, max_new_tokens=60, stop=stop)
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish_reason is FinishReason.STOP
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        assert stop in client.tokenizer.decode(cut.token_ids)
        assert stop not in client.tokenizer.decode(cut.token_ids[:-1])
        assert await client.generate(PROMPT, mode=mode, max_new_tokens=60, stop=["\0", stop]) is not None

    run(target, tiny_pair, scene, risk=0.0)


def test_a_cut_text_and_its_rest_make_the_whole(client: EdgeClient) -> None:
    text = "naïve 😀 stopping sto"
    token_ids = client.tokenizer.encode(text)
    assert len(token_ids) > 4
    unfinished = [cut for cut in range(len(token_ids)) if client.tokenizer.decode(token_ids[:cut]).endswith("\ufffd")]
    assert unfinished, "some characters take several tokens"
    for cut in range(len(token_ids)):
        before, after = (CommittedText(client.tokenizer, ["stop!"], resumed=token_ids[:length]) for length in (0, cut))
        shown = "".join(before.push(token_id)[0] for token_id in token_ids[:cut])
        assert shown + "".join(after.push(token_id)[0] for token_id in token_ids[cut:]) + after.flush() == text


# --- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", [PlannerSettings(), PlannerSettings(span_tokens=3, takeover_tokens=4)])
@pytest.mark.parametrize("mode", Mode)
def test_the_numbers_add_up(tiny_pair: Path, target: TorchModel, mode: Mode, planner: PlannerSettings) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        for seed in range(3):
            result = await client.generate(PROMPT, mode=mode, temperature=1.0, seed=seed, max_new_tokens=50)
            stats = result.stats
            assert stats.prompt_tokens == len(result.prompt_token_ids)
            assert stats.completion_tokens == len(result.token_ids) <= 50
            assert stats.completion_tokens == (
                stats.verified_tokens
                + stats.skipped_tokens
                + stats.overridden_tokens
                + stats.bonus_tokens
                + stats.takeover_tokens
                + stats.unverified_tokens
            )
            assert stats.finish_reason is result.finish_reason
            assert 0 < (stats.ttft_ms or 0) <= (stats.ttft_committed_ms or 0) <= stats.total_ms
            assert stats.decode_ms is None
            assert stats.round_trips >= 0
            assert stats.hidden_round_trips >= 0
            assert 0 <= stats.deviation_bound <= 1
            assert stats.energy_j > 0
            on_the_link = (stats.bytes_up, stats.bytes_down, stats.cloud_compute_ms)
            if mode is Mode.EDGE:
                assert on_the_link == (0, 0, 0)
                assert stats.skipped_tokens == stats.completion_tokens
                assert stats.fired == 0
            else:
                assert min(on_the_link) > 0
            if mode is Mode.EXACT:
                assert stats.skipped_tokens == stats.deviations == 0
                assert stats.fired >= stats.verified_tokens
            if mode is Mode.CLOUD:
                assert stats.edge_compute_ms == 0
                assert stats.takeover_tokens == stats.completion_tokens - 1

    run(target, tiny_pair, scene, planner=planner)


class Unreachable:
    """A cloud that must not be asked."""

    async def capabilities(self, timeout_ms: float) -> NoReturn:
        raise AssertionError("edge mode asked for capabilities")

    def link(self) -> NoReturn:
        raise AssertionError("edge mode opened a stream")

    async def close(self) -> None:
        pass


def test_edge_mode_sends_nothing(tiny_pair: Path) -> None:
    async def play() -> None:
        async with EdgeClient(config_for("127.0.0.1:1"), cloud=Unreachable()) as client:
            result = await client.generate(PROMPT, mode="edge", max_new_tokens=10)
        assert (result.stats.bytes_up, result.stats.bytes_down) == (0, 0)
        async with EdgeClient(config_for("cloud.example.com:443")) as client:  # not even looked at
            assert (await client.generate(PROMPT, mode="edge", max_new_tokens=10)).token_ids == result.token_ids

    asyncio.run(play())


def test_an_address_elsewhere_is_refused(tiny_pair: Path) -> None:
    async def play(address: str) -> None:
        async with EdgeClient(config_for(address)) as client:
            await client.generate(PROMPT)

    for address in ("cloud.example.com:443", "127.0.0.1.example.com:443", "10.0.0.1:50151", "127.0.0.1"):
        with pytest.raises(ConfigError, match=r"cloud\.address: .* is not on this machine") as caught:
            asyncio.run(play(address))
        assert repr(address) in caught.value.message


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud", "edge"])
def test_a_warm_start_measures_decoding_alone(tiny_pair: Path, target: TorchModel, mode: str) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        cold = await client.generate(PROMPT, mode=mode, max_new_tokens=30)
        warm = await client.generate(PROMPT, mode=mode, max_new_tokens=30, warm_start=True)
        assert warm.token_ids == cold.token_ids
        assert cold.stats.decode_ms is None
        assert warm.stats.decode_ms is not None
        assert 0 < warm.stats.decode_ms < warm.stats.total_ms

    run(target, tiny_pair, scene, risk=0.0)


@pytest.mark.parametrize("risk", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_closing_audit_makes_deviations_complete(
    tiny_pair: Path, target: TorchModel, risk: float, temperature: float
) -> None:
    async def scene(client: EdgeClient, server: Server) -> int:
        total = 0
        for seed in range(4):
            request = client.request(
                PROMPT, mode="gated", temperature=temperature, top_p=0.95, seed=seed, max_new_tokens=50 + seed
            )
            result = await client.generate(request)
            text = [*result.prompt_token_ids, *result.token_ids]
            count = len(result.token_ids)
            reading = Reading(target.new_cache(), text[:-1], count, request.params.sampling)
            choices = [choice.token_id for choice in target.read([reading])[0]]
            deviations = sum(own != choice for own, choice in zip(result.token_ids, choices, strict=True))
            assert result.stats.deviations == deviations
            assert result.stats.audited_tokens >= result.stats.skipped_tokens
            assert result.stats.deviation_bound == deviations / count
            caught = result.stats.overridden_tokens
            assert result.stats.catch == (caught / (caught + deviations) if caught + deviations else None)
            total += deviations
        return total

    total = run(target, tiny_pair, scene, risk=risk, closing_audit=True)
    if risk == 0.0:
        assert total == 0, "everything was asked about"
    elif risk == 1.0:
        assert total > 0, "the models differ, and nothing was asked about"


# --- Bad input -------------------------------------------------------------------------------------------------------

BAD = [
    ({"temperature": -0.1}, "temperature: -0.1 is not a finite number >= 0; use 0 for greedy"),
    ({"temperature": float("nan")}, "temperature: nan is not a finite number"),
    ({"temperature": "hot"}, "temperature: 'hot' is not a number"),
    ({"temperature": 10**400}, "temperature: the number is too large"),
    ({"top_p": 1.5}, "top_p: 1.5 is outside (0, 1]; use 1 to switch it off"),
    ({"top_p": 0}, "top_p: 0.0 is outside (0, 1]"),
    ({"top_k": -1}, "top_k: -1 is negative; use 0 to switch it off"),
    ({"top_k": 2.5}, "top_k: 2.5 is not a whole number"),
    ({"top_k": True}, "top_k: True is not a whole number"),
    ({"top_k": 2**32}, "top_k: 4294967296 is more than 4294967295"),
    ({"min_p": 2}, "min_p: 2.0 is outside [0, 1]; use 0 to switch it off"),
    ({"seed": -1}, "seed: -1 is outside [0, 2**64 - 1]"),
    ({"seed": 2**64}, "seed: 18446744073709551616 is more than 18446744073709551615"),
    ({"max_new_tokens": 0}, "max_new_tokens: 0 is less than 1"),
    ({"max_new_tokens": 2**32}, "max_new_tokens: 4294967296 is more than"),
    ({"stop": [""]}, "stop: '' must have 1 to 256 characters"),
    ({"stop": ["x"] * 17}, "stop: 17 strings, at most 16 are allowed"),
    ({"stop": 5}, "stop: 5 is neither a string nor a list of strings"),
    ({"stop": [5]}, "stop: [5] is neither a string nor a list of strings"),
    ({"mode": "fast"}, "mode: 'fast' is none of exact, gated, edge, cloud"),
    ({"mode": []}, "mode: [] is none of"),
    ({"prompt": ""}, "prompt: it is empty; give some text"),
    ({"prompt": " \n"}, "prompt: it is empty; give some text"),
    ({"prompt": "\ud800"}, "is a lone surrogate; give valid Unicode"),
    ({"prompt": []}, "messages: expected a list of at least one message"),
    ({"prompt": [{"role": "user"}]}, "messages[0].content: expected a string, got NoneType"),
    ({"prompt": [{"role": "boss", "content": "x"}]}, "messages[0].role: 'boss' is none of system, user"),
    ({"prompt": ["x"]}, "messages[0]: expected an object with role and content, got str"),
]


@pytest.mark.parametrize(("parameters", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_parameters_are_named(client: EdgeClient, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.request(**{"prompt": PROMPT, **parameters})
    assert words in caught.value.message


@pytest.mark.parametrize("raw", [True, False])
def test_a_prompt_longer_than_the_context_is_refused(tiny_pair: Path, target: TorchModel, raw: bool) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        for mode in Mode:
            with pytest.raises(PromptTooLong, match=r"tokens leave no room in a context of 4096; shorten it"):
                await client.generate("the list " * 4096, mode=mode, raw=raw)
        assert server.supervisor.counters.streams == 0

    run(target, tiny_pair, scene)


@pytest.mark.parametrize("mode", Mode)
def test_the_context_may_be_filled_to_the_last_token(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    prompt = PromptInput(tuple(5 + index % 200 for index in range(4086)))

    async def scene(client: EdgeClient, server: Server) -> None:
        result = await client.generate(prompt, mode=mode, temperature=1.0, seed=2, max_new_tokens=100)
        assert len(result.token_ids) == 10 or result.finish_reason is FinishReason.STOP

    run(target, tiny_pair, scene, closing_audit=True)


@pytest.mark.parametrize("committed", [range(5, 8), range(5, 15)])
def test_a_resume_with_nothing_left_is_refused(tiny_pair: Path, target: TorchModel, committed: Sequence[int]) -> None:
    async def scene(client: EdgeClient, server: Server) -> None:
        await client.generate(PROMPT, committed_token_ids=committed, max_new_tokens=3)

    with pytest.raises(InvalidRequest, match="committed_token_ids: .* as many as max_new_tokens, 3; nothing is left"):
        run(target, tiny_pair, scene)
