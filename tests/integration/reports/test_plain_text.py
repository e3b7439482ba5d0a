"""Text without events, Hugging Face's names and streamers, and clients by the name or path of a pair."""

from __future__ import annotations

import asyncio
import inspect
import shutil
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from transformers import AutoTokenizer, TextIteratorStreamer, TextStreamer

from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client import (
    Cancellation,
    Cancelled,
    CloudUnavailable,
    ConfigError,
    EdgeClient,
    EdgeConfig,
    InvalidRequest,
    Mode,
    SyncEdgeClient,
)
from edge_client.config import CloudSettings
from edge_client.parameters import merged
from tests.support.processes.clients import IMPATIENT, NOBODY, config_for
from tests.support.processes.servers import serving_in_thread
from tests.support.waiting import until

PROMPT = "the list of a number is"
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11, "max_new_tokens": 40}
EDGE = EdgeConfig(pair="tiny", mode=Mode.EDGE)


@pytest.fixture(scope="module")
def served(tiny_pair: Path, target: TorchModel) -> Iterator[tuple[Server, str]]:
    with serving_in_thread(target, tiny_pair) as server_and_address:
        yield server_and_address


# --- Text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, ["e"]])
def test_the_pieces_are_the_text_of_the_result(served: tuple[Server, str], stop: list[str] | None) -> None:
    async def write() -> tuple[list[str], list[str], str]:
        async with EdgeClient(config_for(served[1])) as client:
            pieces = [text async for text in client.stream_text(PROMPT, stop=stop, **SAMPLED)]
            turn = [text async for text in client.conversation().stream_text(PROMPT, stop=stop, **SAMPLED)]
            return pieces, turn, (await client.generate(PROMPT, stop=stop, **SAMPLED)).text

    pieces, turn, whole = asyncio.run(write())
    assert all(pieces)
    assert "".join(pieces) == "".join(turn) == whole
    with SyncEdgeClient(config_for(served[1])) as client:
        assert "".join(client.stream_text(PROMPT, stop=stop, **SAMPLED)) == whole
        assert "".join(client.conversation().stream_text(PROMPT, stop=stop, **SAMPLED)) == whole


def test_a_failure_is_raised_with_its_partial() -> None:
    cloud = IMPATIENT.model_copy(update={"reconnect_timeout_ms": 0.0})

    async def write() -> None:
        async with EdgeClient(config_for(NOBODY, cloud=cloud)) as client:
            with pytest.raises(CloudUnavailable) as caught:
                [text async for text in client.stream_text(PROMPT)]
            assert caught.value.partial is not None

    asyncio.run(write())
    with SyncEdgeClient(config_for(NOBODY, cloud=cloud)) as client, pytest.raises(CloudUnavailable):
        [*client.stream_text(PROMPT)]


def test_leaving_the_text_ends_the_generation(served: tuple[Server, str]) -> None:
    server, address = served
    endless: dict[str, Any] = {"max_new_tokens": 2000, "temperature": 1.0, "seed": 1}

    async def leave() -> None:
        async with EdgeClient(config_for(address)) as client:
            async with aclosing(client.stream_text(PROMPT, **endless)) as texts:
                async for _ in texts:
                    break
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            handle = Cancellation()
            handle.cancel()
            with pytest.raises(Cancelled):
                [text async for text in client.stream_text(PROMPT, cancellation=handle)]

    asyncio.run(leave())
    with SyncEdgeClient(config_for(address)) as client:
        texts = client.stream_text(PROMPT, **endless)
        assert inspect.isgenerator(texts)
        with closing(texts):
            next(texts)
        asyncio.run(until(lambda: server.cloud.supervisor.sessions == 0, "the session ended"))


# --- Hugging Face's names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": True, "seed": 3}, {"temperature": 1.0, "seed": 3}),
        ({"do_sample": True, "temperature": 0.5, "seed": 3}, {"temperature": 0.5, "seed": 3}),
        ({"stop_strings": "e"}, {"stop": ["e"]}),
        ({"stop_strings": ["e", "in"], "max_new_tokens": 7}, {"stop": ["e", "in"], "max_new_tokens": 7}),
    ],
)
def test_names_of_hugging_face_have_their_meaning(tiny_pair: Path, given: Any, same: Any) -> None:
    client = EdgeClient(EDGE)
    assert client.request(PROMPT, **given).params == client.request(PROMPT, **same).params


def test_a_configured_temperature_is_kept_where_tokens_are_drawn(tiny_pair: Path) -> None:
    warm = EDGE.generation.model_copy(update={"temperature": 0.4})
    client = EdgeClient(EDGE.model_copy(update={"generation": warm}))
    assert client.request(PROMPT, do_sample=True).params.sampling.temperature == 0.4
    assert client.request(PROMPT, do_sample=False).params.sampling.temperature == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"do_sample": False, "temperature": 0.7}, "do_sample: False is greedy, but temperature is 0.7; give one"),
        ({"do_sample": True, "temperature": 0}, "do_sample: True, but temperature is 0, which is greedy; give a"),
        ({"do_sample": 1}, "do_sample: 1 is neither true nor false"),
        ({"stop": "a", "stop_strings": "b"}, "stop_strings: it is another name of stop, which is given, too"),
        ({"do_smaple": True}, "do_smaple: unknown parameter \\(did you mean 'do_sample'\\?\\)"),
        ({"timeuot": 3}, "timeuot: unknown parameter \\(did you mean 'timeout'\\?\\)"),
        ({"timeout": 3}, "timeout: no parameter here; only generate, stream and stream_text take it"),
        ({"explain": True}, "explain: no parameter here; only stream takes it, as an argument of the method"),
        ({"logprobs": 3}, "logprobs: 3 is a number; use logprobs=True, top_logprobs=3"),
        ({"logprob": True}, "logprob: unknown parameter \\(did you mean 'logprobs'\\?\\)"),
        ({"top_logprobs": 3}, "top_logprobs: 3 needs logprobs=True"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: 21 is outside \\[0, 20\\]"),
    ],
)
def test_what_contradicts_or_is_unknown_is_refused(tiny_pair: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        EdgeClient(EDGE).request(PROMPT, **given)


def test_a_turn_replaces_the_names_of_its_conversation(tiny_pair: Path) -> None:
    async def write() -> None:
        async with EdgeClient(EDGE) as client:
            chat = client.conversation(stop="e", temperature=0.8, max_new_tokens=4)
            first = await chat.generate(PROMPT, stop_strings=["qqq"], do_sample=False)
            assert first.text == (await client.generate(PROMPT, max_new_tokens=4)).text
            with pytest.raises(InvalidRequest, match="max_tokens: unknown parameter"):
                await chat.generate(PROMPT, **cast(Any, {"max_tokens": 4}))

    asyncio.run(write())


@pytest.mark.parametrize(
    ("kept", "given", "same"),
    [
        ({"do_sample": True}, {"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 0.0}, {"temperature": 0.0}),
        ({"do_sample": False}, {"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.0}, {"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.6}, {"do_sample": True}, {"temperature": 0.6}),
        ({"temperature": 0.6}, {"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": True}, {"top_k": 3}, {"temperature": 1.0, "top_k": 3}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": False}, {}),
        ({"logprobs": True, "top_logprobs": 2}, {"top_logprobs": 1}, {"logprobs": True, "top_logprobs": 1}),
    ],
)
def test_one_text_overrides_what_is_usual(tiny_pair: Path, kept: Any, given: Any, same: Any) -> None:
    client = EdgeClient(EDGE)
    expected = client.request(PROMPT, seed=3, **same).params
    assert client.request(PROMPT, **merged(kept, {"seed": 3, **given})).params == expected


# --- Streamers --------------------------------------------------------------------------------------------------------


class Recorder:
    """A streamer that records what it gets."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.ends = 0

    def put(self, value: Any) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ends += 1


def test_a_streamer_gets_the_prompt_then_each_token_then_the_end(tiny_pair: Path) -> None:
    recorder = Recorder()
    with SyncEdgeClient(EDGE) as client:
        result = client.generate(PROMPT, max_new_tokens=6, streamer=recorder)
        turn = Recorder()
        client.conversation().generate(PROMPT, max_new_tokens=6, streamer=turn)
    prompt, *tokens = recorder.values
    assert prompt.shape == (1, len(result.prompt_token_ids))
    assert tuple(prompt[0]) == result.prompt_token_ids
    assert [each.tolist() for each in tokens] == [[token_id] for token_id in result.token_ids]
    assert recorder.ends == turn.ends == 1
    assert [np.concatenate([each.ravel() for each in found.values]).tolist() for found in (recorder, turn)] == [
        [*result.prompt_token_ids, *result.token_ids]
    ] * 2


def test_streamers_of_transformers_print_and_pass_on_the_text(
    tiny_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair / "cloud")
    with SyncEdgeClient(EDGE) as client:
        printing = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        result = client.generate(PROMPT, max_new_tokens=12, streamer=printing)
        assert capsys.readouterr().out == f"{result.text}\n"
        passing = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        client.generate(PROMPT, max_new_tokens=12, streamer=passing)
        assert "".join(passing) == result.text


def test_a_streamer_is_ended_after_a_failure(tiny_pair: Path) -> None:
    recorder = Recorder()
    with SyncEdgeClient(config_for(NOBODY, cloud=IMPATIENT)) as client, pytest.raises(CloudUnavailable):
        client.generate(PROMPT, streamer=recorder)
    assert recorder.ends == 1


def test_another_object_is_no_streamer(tiny_pair: Path) -> None:
    with (
        SyncEdgeClient(EDGE) as client,
        pytest.raises(InvalidRequest, match="streamer: <built-in function print> has no put and end"),
    ):
        client.generate(PROMPT, streamer=cast(Any, print))


# --- Clients by name or path ------------------------------------------------------------------------------------------


def test_a_client_is_made_of_a_name_or_a_path(tiny_pair: Path, served: tuple[Server, str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "my models"
    elsewhere.symlink_to(tiny_pair)
    texts = []
    for place in ("tiny", elsewhere, str(elsewhere), elsewhere / "edge"):
        with SyncEdgeClient.from_pretrained(place, cloud=served[1]) as client:
            assert client.generate(PROMPT, mode="exact", **SAMPLED).stats.verified_tokens
            texts.append(client.generate(PROMPT, mode="edge", max_new_tokens=8).text)
    assert len({*texts}) == 1


def test_a_folder_outside_the_home_is_all_that_a_client_reads(
    tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_pair / "edge", tmp_path / "mine" / "edge")
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "empty"))
    with SyncEdgeClient.from_pretrained(tmp_path / "mine", config=EDGE) as client:
        assert client.generate(PROMPT, max_new_tokens=4).token_ids


def test_the_other_settings_are_those_of_the_configuration(tiny_pair: Path) -> None:
    base = EdgeConfig(mode=Mode.EDGE, cloud=CloudSettings(insecure=True, on_loss="fail"))
    config = EdgeClient.from_pretrained(tiny_pair, cloud=["10.0.0.1:1", "10.0.0.2:1"], config=base).config
    assert config.mode is Mode.EDGE
    assert config.pair == "tiny"
    assert config.cloud == base.cloud.model_copy(update={"address": ("10.0.0.1:1", "10.0.0.2:1")})
    assert EdgeClient.from_pretrained("tiny").config == EdgeConfig(pair="tiny")


@pytest.mark.parametrize("place", ["./nowhere", "org/model"])
def test_neither_a_name_nor_a_path_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match=rf"pair_or_path: '{place}' is neither the name of a pair nor a folder"):
        EdgeClient.from_pretrained(place)


def test_an_address_without_a_port_is_refused(tiny_pair: Path) -> None:
    with pytest.raises(ConfigError, match="address: "):
        EdgeClient.from_pretrained("tiny", cloud="localhost")


@pytest.mark.parametrize("make", [EdgeClient, SyncEdgeClient])
def test_settings_of_another_kind_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"config: 'default' is no EdgeConfig; use EdgeConfig.load\(FILE\), or"):
        make("default")
    with pytest.raises(ConfigError, match="config: 'edge.yaml' is no EdgeConfig"):
        make.from_pretrained("tiny", config="edge.yaml")


@pytest.mark.parametrize("kind", [EdgeClient, SyncEdgeClient])
@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"pair": "tiny"}, """from_pretrained('tiny', cloud="HOST:PORT")"""),
        ({"cloud": "a:1"}, """from_pretrained("default", cloud="HOST:PORT")"""),
        ({"mode": "edge"}, "(EdgeConfig(mode=...))"),
        ({"temperature": 1.0}, "the parameters of a text to generate or stream"),
    ],
)
def test_an_argument_of_another_call_is_refused_with_that_call(kind: Any, given: dict[str, Any], remedy: str) -> None:
    (name,) = given
    with pytest.raises(InvalidRequest, match=f"^{name}: {kind.__name__} has no such argument; ") as caught:
        kind(**given)
    assert remedy in caught.value.message


def test_an_address_in_place_of_the_clouds_settings_is_refused_with_these() -> None:
    with pytest.raises(ConfigError) as caught:
        EdgeConfig(cloud=cast(Any, "127.0.0.1:1"))
    assert caught.value.message == (
        "cloud: '127.0.0.1:1' is an address, which belongs into cloud.address: CloudSettings(address='127.0.0.1:1')"
    )
