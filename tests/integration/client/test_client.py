"""The device SDK against a real server with the tiny pair: parity, concurrency and text."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import ConfigError, InvalidRequest
from chaperone_common.session import Committed, Drafted, Finished, Retracted
from chaperone_common.types import FinishReason, Mode
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient, EdgeConfig, Generation, GenerationSettings, SyncEdgeClient
from edge_client.config import PlannerSettings
from edge_client.events import Event, Planned
from edge_client.generation import Collector
from edge_client.planner import FixedPlanner, Send
from edge_client.text.output import CommittedText
from tests.support.processes.clients import config_for, ending_of, run
from tests.support.processes.servers import serving_in_thread
from tests.support.waiting import until

PROMPT = "the list of a number is"
LOCKSTEP = PlannerSettings(policy="fixed", span_tokens=4, spans_in_flight=1, run_ahead_tokens=1)
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11, "max_new_tokens": 60}
TIMED = ("_ms", "_j", "bytes_up", "bytes_down", "round_trips", "cached_tokens", "generation_id")


@pytest.fixture(scope="module")
def client(tiny_pair: Path) -> EdgeClient:
    return EdgeClient(EdgeConfig(pair="tiny"))


def timeless(event: Event) -> dict[str, Any]:
    """Return the fields of an event, without the measured times, and what the cloud held from the text before."""
    fields = asdict(event)
    if "stats" in fields:
        fields["stats"] = {name: value for name, value in fields["stats"].items() if not name.endswith(TIMED)}
    return {"type": type(event).__name__, **fields}


# --- Async and sync are the same --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_async_and_sync_give_the_same_events(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
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
        client.close()  # closing twice is allowed
    # The last bits of an encoding may differ, and with them those of all signals and risks.
    unlike = {"signal", "proposal", "stats"} if mode is Mode.CONDITIONED else set[str]()
    both = [[timeless(event) for event in each] for each in (sync_events, events)]
    found, expected = ([{k: v for k, v in event.items() if k not in unlike} for event in each] for each in both)
    assert found == expected
    assert sync_generation.token_ids == generation.token_ids
    assert sync_generation.text == generation.text


def test_sync_raises_the_same_errors_as_async(tiny_pair: Path) -> None:
    with SyncEdgeClient(config_for("127.0.0.1:1")) as client:
        with pytest.raises(InvalidRequest, match="temperature: -1"):
            client.generate(PROMPT, temperature=-1)
        with pytest.raises(InvalidRequest, match="temperature: -1"):
            next(iter(client.stream(PROMPT, temperature=-1)))


def test_parameters_next_to_a_request_are_refused(client: EdgeClient) -> None:
    request = client.request(PROMPT)
    with pytest.raises(InvalidRequest, match="temperature, seed: a GenerationRequest has all parameters already"):
        asyncio.run(client.generate(request, temperature=0.7, seed=1))
    with pytest.raises(InvalidRequest, match="raw: messages always go through the chat template"):
        client.prepare([{"role": "user", "content": PROMPT}], raw=True)


def test_a_client_can_be_set_from_python_by_plain_values() -> None:
    stop: Any = ["a", "b"]
    mode: Any = "gated"
    config = EdgeConfig(mode=mode, generation=GenerationSettings(stop=stop))
    assert (config.mode, config.generation.stop) == (Mode.GATED, ("a", "b"))
    with pytest.raises(ConfigError, match="mode: 'gate' is not 'exact'"):
        EdgeConfig(mode=mode[:-1])


def test_sync_takes_a_custom_planner_and_explains(tiny_pair: Path, target: TorchModel) -> None:
    with (
        serving_in_thread(target, tiny_pair) as (_, address),
        SyncEdgeClient(
            config_for(address),
            planner=lambda mode: FixedPlanner(mode, span_tokens=3, spans_in_flight=1, run_ahead_tokens=3),
        ) as client,
    ):
        *events, ending = client.stream(PROMPT, max_new_tokens=12, explain=True)
    assert isinstance(ending, Finished)
    assert ending.stats.round_trips >= 3
    planned = [event for event in events if isinstance(event, Planned)]
    assert any(isinstance(event.decision.action, Send) for event in planned)
    assert {event.generation_id for event in planned} == {ending.stats.generation_id}


def test_leaving_the_sync_stream_early_ends_the_session(tiny_pair: Path, target: TorchModel) -> None:
    with serving_in_thread(target, tiny_pair) as (server, address):
        with SyncEdgeClient(config_for(address)) as client:
            for event in client.stream(PROMPT, max_new_tokens=2000):
                if isinstance(event, Committed):
                    break
            asyncio.run(until(lambda: server.cloud.supervisor.sessions == 0, "the session ended"))
            again = client.generate(PROMPT, max_new_tokens=5)
        assert again.stats.completion_tokens == 5
        asyncio.run(until(lambda: server.cloud.runner.kv_stats.sessions == 0, "the KV is freed"))


# --- One client, many generations ------------------------------------------------------------------------------------


def test_concurrent_generations_do_not_disturb_each_other(tiny_pair: Path, target: TorchModel) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": f"{PROMPT} {index}", "mode": mode, "temperature": 0.8, "seed": index, "max_new_tokens": 40}
        for index, mode in enumerate(["exact", "cloud", "edge", "exact", "exact", "edge", "cloud", "exact"])
    ]

    async def scenario(client: EdgeClient, server: Server) -> None:
        together = await asyncio.gather(*(client.generate(**request) for request in requests))
        alone = [await client.generate(**request) for request in requests]
        assert [result.token_ids for result in together] == [result.token_ids for result in alone]
        assert [result.text for result in together] == [result.text for result in alone]

    run(target, tiny_pair, scenario)


def test_leaving_the_stream_early_ends_the_session(tiny_pair: Path, target: TorchModel) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        for mode in ("exact", "gated", "cloud"):
            async with aclosing(client.stream(PROMPT, mode=mode, max_new_tokens=2000)) as events:
                async for event in events:
                    if isinstance(event, Committed):
                        assert server.cloud.supervisor.sessions == 1
                        break
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "the KV is freed")

    run(target, tiny_pair, scenario)


def test_cancelling_the_task_ends_the_session(tiny_pair: Path, target: TorchModel) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        task = asyncio.create_task(client.generate(PROMPT, max_new_tokens=3000))
        await until(lambda: server.cloud.runner.kv_stats.bytes_used > 0, "the cloud reads")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
        assert (await client.generate(PROMPT, max_new_tokens=5)).stats.completion_tokens == 5

    run(target, tiny_pair, scenario)


# --- Text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_the_text_is_the_decoded_tokens(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        for seed in range(4):
            parameters: dict[str, Any] = {"temperature": 1.2, "seed": seed, "max_new_tokens": 80, "mode": mode}
            events = [event async for event in client.stream(PROMPT, **parameters)]
            assert isinstance(ending_of(events), Finished)
            collected = Collector(client.request(PROMPT, **parameters))
            for event in events:
                collected.add(event)
            result = collected.result()
            assert result.text == client.tokenizer.decode(result.token_ids)
            final = [event for event in events if isinstance(event, Committed | Finished)]
            assert "".join(event.text for event in final) == result.text
            assert len(result.origins) == len(result.token_ids)
            assert result.prompt_token_ids == client.prepare(PROMPT).token_ids

    run(target, tiny_pair, scenario)


@pytest.mark.parametrize("mode", Mode)
def test_a_stop_string_cuts_the_text(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
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

    run(target, tiny_pair, scenario, risk=0.0)


def test_a_resumed_text_joins_into_the_whole(client: EdgeClient) -> None:
    text = "naïve 😀 stopping sto"
    token_ids = client.tokenizer.encode(text)
    assert len(token_ids) > 4
    unfinished = [cut for cut in range(len(token_ids)) if client.tokenizer.decode(token_ids[:cut]).endswith("\ufffd")]
    assert unfinished, "some characters take several tokens"
    for cut in range(len(token_ids)):
        before, after = (CommittedText(client.tokenizer, ["stop!"], resumed=token_ids[:length]) for length in (0, cut))
        shown = "".join(before.push(token_id)[0] for token_id in token_ids[:cut])
        assert shown + "".join(after.push(token_id)[0] for token_id in token_ids[cut:]) + after.flush() == text


@pytest.mark.parametrize("mode", ["exact", "gated", "edge"])
def test_drafted_text_has_whole_characters_and_becomes_final(tiny_pair: Path, target: TorchModel, mode: str) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        retracted = 0
        for seed in range(6):
            shown: dict[int, str] = {}
            final: dict[int, str] = {}
            drafted: dict[int, tuple[int, str]] = {}
            any_text = False
            async for event in client.stream(PROMPT, temperature=1.2, seed=seed, max_new_tokens=60, mode=mode):
                match event:
                    case Drafted():
                        shown[event.position] = event.text
                        drafted[event.position] = (event.token_id, event.text)
                        any_text = any_text or bool(event.text)
                    case Retracted():
                        retracted += 1
                        shown = {position: text for position, text in shown.items() if position < event.position}
                        drafted = {position: draft for position, draft in drafted.items() if position < event.position}
                    case Committed():
                        shown[event.position] = final[event.position] = event.text
                        token_id, text = drafted.get(event.position, (None, ""))
                        assert token_id != event.token_id or text == event.text
                    case Finished():
                        assert "".join(shown.values()) == "".join(final.values())
                    case _:
                        pass
            assert any_text
        assert retracted or mode == "edge"

    run(target, tiny_pair, scenario)
