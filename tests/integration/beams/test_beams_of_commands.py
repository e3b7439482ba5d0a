"""Beams by `chaperone generate`, in batches, and by the endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_supervisor.model.torch_model import TorchModel
from edge_client.apps.cli.main import main
from edge_client.config import GenerationSettings
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import IMPATIENT, NOBODY
from tests.support.processes.endpoints import endpoint
from tests.support.processes.servers import serving_in_thread

PROMPT = "the list of a number is"


@pytest.fixture(scope="module")
def address(tiny_pair: Path) -> Iterator[str]:
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        yield address


def options(address: str) -> list[str]:
    return ["generate", "--pair", "tiny", "--cloud", address, "--max-new-tokens", "8"]


def test_the_result_has_the_best_texts_in_order(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    beams = ["--num-beams", "3", "--num-return-sequences", "2", "--length-penalty", "0.5", "--beam-width", "4"]
    assert main([*options(address), *beams, "--json", PROMPT]) == 0
    result = json.loads(capsys.readouterr().out)
    first, second = result["sequences"]
    assert first.keys() == {"token_ids", "text", "score", "finish_reason"}
    assert (first["token_ids"], first["text"]) == (result["token_ids"], result["text"])
    assert first["finish_reason"] == result["finish_reason"]
    assert second["score"] <= first["score"] < 0
    assert main([*options(address), "--num-beams", "3", "--length-penalty", "0.5", PROMPT]) == 0
    assert capsys.readouterr().out == first["text"] + "\n"
    assert main([*options(address), "--json", PROMPT]) == 0
    assert "sequences" not in json.loads(capsys.readouterr().out)


def test_lines_of_a_batch_choose_for_themselves(address: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"id": "flag", "prompt": PROMPT},
        {"id": "one", "prompt": PROMPT, "num_beams": 1},
        {"id": "many", "prompt": PROMPT, "num_beams": 4, "num_return_sequences": 4, "beam_width": "dynamic"},
        {"id": "wrong", "prompt": PROMPT, "num_beams": 9},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert main([*options(address), "--num-beams", "2", "--prompts", str(prompts), "--out", str(out)]) == 1
    results = {result["id"]: result for result in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert len(results["flag"]["sequences"]) == 1
    assert "sequences" not in results["one"]
    assert len(results["many"]["sequences"]) == 4
    assert results["wrong"]["error"]["message"].startswith("line 4: num_beams: 9 is outside [1, 8]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-return-sequences", "2"], "--num-return-sequences is printed as JSON; give --json, or --prompts and"),
        (["--num-beams", "0"], "--num-beams: 0 is outside [1, 8]"),
        (["--num-beams", "2", "--beam-width", "wide"], "'wide': neither dynamic nor a whole number"),
        (["--num-beams", "2", "--beam-width", "40"], "--beam-width: 40 is outside [1, 16]"),
        (["--num-beams", "2", "--mode", "gated"], "num_beams: 2, and mode is gated"),
        (["--length-penalty", "2"], "--length-penalty: num_beams is 1, and only beams have it"),
    ],
)
def test_wrong_flags_are_refused(
    address: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main([*options(address), *arguments, PROMPT]))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_endpoint_returns_the_best_texts(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            expected = await served.client.generate(PROMPT, max_new_tokens=8, num_beams=3, num_return_sequences=2)
            assert expected.sequences is not None
            answer = await served.chat(PROMPT, max_tokens=8, best_of=3, n=2)
            assert answer.status == 200, answer.json
            texts = [choice["message"]["content"] for choice in answer.json["choices"]]
            assert texts == [sequence.text for sequence in expected.sequences]
            usage = answer.json["usage"]
            assert usage["completion_tokens"] == sum(len(sequence.token_ids) for sequence in expected.sequences)
            for choice, sequence in zip(answer.json["chaperone"]["choices"], expected.sequences, strict=True):
                assert len(choice["origins"]) == len(sequence.token_ids)
            options: dict[str, Any] = {"num_beams": 3, "length_penalty": 1.0, "beam_width": "dynamic"}
            streamed = await served.chat(PROMPT, max_tokens=8, stream=True, chaperone=options)
            *chunks, done = streamed.events
            assert done == "[DONE]"
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            assert text == expected.text

    asyncio.run(asyncio.wait_for(test(), 150))


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"best_of": 2, "n": 2, "stream": True}, 400, "n: 2 texts of one search cannot be streamed"),
        ({"best_of": 2, "n": 3}, 400, "n: 3, and best_of is 2; ask for as many beams"),
        ({"chaperone": {"num_beams": 9}}, 400, "best_of: 9 is outside [1, 8]"),
        ({"best_of": 2, "chaperone": {"beam_width": 17}}, 400, "chaperone.beam_width: 17 is outside [1, 16]"),
        ({"best_of": 2, "chaperone": {"beam_threshold": 2.0}}, 400, "chaperone.beam_threshold: 2.0 is outside (0, 1]"),
        ({"chaperone": {"length_penalty": 0.5}}, 400, "chaperone.length_penalty: best_of is 1, and only beams have it"),
        ({"chaperone": {"early_stopping": True}}, 400, "chaperone.early_stopping: best_of is 1"),
        ({"chaperone": {"one_cache": True}}, 400, "chaperone.one_cache: best_of is 1"),
        ({"best_of": 2, "chaperone": {"mode": "gated"}}, 400, "best_of: 2, and mode is gated"),
        ({"best_of": 2, "chaperone": {"num_beams": 3}}, 400, "best_of: it is another name of num_beams"),
        ({"best_of": 9}, 400, "best_of: 9: Input should be less than or equal to 8"),
        ({"num_beams": 2}, 400, "num_beams: put it into `chaperone`"),
    ],
)
def test_the_endpoint_refuses_what_beams_do_not_take(
    tiny_pair: Path, target: TorchModel, fields: dict[str, Any], status: int, message: str
) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            answer = await served.chat(PROMPT, max_tokens=4, **fields)
            assert (answer.status, message in answer.error["message"]) == (status, True), answer.json
            assert answer.error["param"] == answer.error["message"].partition(":")[0]

    asyncio.run(asyncio.wait_for(test(), 150))


def test_the_endpoint_searches_as_it_is_configured_to(tiny_pair: Path, target: TorchModel) -> None:
    """The choices of `n` are then the best texts of one search, and not of one search each."""

    async def test() -> None:
        async with endpoint(target, tiny_pair, generation=GenerationSettings(num_beams=3)) as served:
            expected = await served.client.generate(PROMPT, max_new_tokens=8, num_return_sequences=2)
            assert expected.sequences is not None
            answer = await served.chat(PROMPT, max_tokens=8, n=2)
            texts = [choice["message"]["content"] for choice in answer.json["choices"]]
            assert texts == [sequence.text for sequence in expected.sequences]
            assert len(set(texts)) == 2
            single = await served.client.generate(PROMPT, max_new_tokens=8, num_beams=1)
            answer = await served.chat(PROMPT, max_tokens=8, n=2, best_of=1)
            assert [choice["message"]["content"] for choice in answer.json["choices"]] == [single.text] * 2

    asyncio.run(asyncio.wait_for(test(), 150))


def test_the_endpoint_offers_one_text_where_beams_have_no_cloud(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair, address=NOBODY, cloud=IMPATIENT) as served:
            answer = await served.chat(PROMPT, max_tokens=4, best_of=2)
            assert (answer.status, answer.error["code"]) == (503, "cloud_unavailable")
            instead = '; or write one text without it: {"best_of": 1, "chaperone": {"mode": "edge"}}'
            assert answer.error["message"].endswith(instead)
            fields = json.loads(instead.partition("it: ")[2])
            assert (await served.chat(PROMPT, max_tokens=4, **fields)).status == 200

    asyncio.run(asyncio.wait_for(test(), 150))
