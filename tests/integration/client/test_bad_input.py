"""Requests that cannot be served are refused with the field, the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import InvalidRequest, PromptTooLong
from chaperone_common.types import FinishReason, Mode, PromptInput
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient, EdgeConfig
from tests.support.processes.clients import run

PROMPT = "the list of a number is"


@pytest.fixture(scope="module")
def client(tiny_pair: Path) -> EdgeClient:
    return EdgeClient(EdgeConfig(pair="tiny"))


BAD = [
    ({"temperature": -0.1}, "temperature: -0.1 is not a finite number >= 0; use 0 for greedy"),
    ({"temperature": float("nan")}, "temperature: nan is not a finite number"),
    ({"temperature": "hot"}, "temperature: 'hot' is not a number"),
    ({"temperature": 10**400}, f"temperature: {'1' + '0' * 76}... is too large a number"),
    ({"top_p": 1.5}, "top_p: 1.5 is outside (0, 1]; use 1 to switch it off"),
    ({"top_p": 0}, "top_p: 0.0 is outside (0, 1]"),
    ({"top_k": -1}, "top_k: -1 is outside [0, 4294967295]; use 0 to switch it off"),
    ({"top_k": 2.5}, "top_k: 2.5 is not a whole number"),
    ({"top_k": True}, "top_k: true is not a whole number"),
    ({"top_k": 2**32}, "top_k: 4294967296 is outside [0, 4294967295]"),
    ({"min_p": 2}, "min_p: 2.0 is outside [0, 1]; use 0 to switch it off"),
    ({"seed": -1}, "seed: -1 is outside [0, 2**64 - 1]"),
    ({"seed": 2**64}, "seed: 18446744073709551616 is outside [0, 2**64 - 1]"),
    ({"max_new_tokens": 0}, "max_new_tokens: 0 is outside [1, 4294967295]"),
    ({"max_new_tokens": 2**32}, "max_new_tokens: 4294967296 is outside [1, "),
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
    ({"prompt": [{"role": "user"}]}, "messages[0].content: expected a string, or a list of text parts, got nothing"),
    ({"prompt": [{"role": "boss", "content": "x"}]}, "messages[0].role: 'boss' is none of system, developer, user"),
    (
        {"prompt": [{"role": "user", "content": "x", "nmae": "y"}]},
        "messages[0]: 'nmae' is an unknown key (did you mean",
    ),
    ({"prompt": ["x"]}, "messages[0]: expected an object with role and content, got str"),
]


@pytest.mark.parametrize(("parameters", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_parameters_are_named(client: EdgeClient, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.request(**{"prompt": PROMPT, **parameters})
    assert words in caught.value.message


@pytest.mark.parametrize("raw", [True, False])
def test_a_prompt_longer_than_the_context_is_refused(tiny_pair: Path, target: TorchModel, raw: bool) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        for mode in Mode:
            with pytest.raises(PromptTooLong, match=r"tokens leave no room in a context of 4096; shorten it"):
                await client.generate("the list " * 4096, mode=mode, raw=raw)
        assert server.cloud.supervisor.counters.streams == 0

    run(target, tiny_pair, scenario)


@pytest.mark.parametrize("mode", Mode)
def test_the_context_may_be_filled_to_the_last_token(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    prompt = PromptInput(tuple(5 + index % 200 for index in range(4086)))

    async def scenario(client: EdgeClient, server: Server) -> None:
        result = await client.generate(prompt, mode=mode, temperature=1.0, seed=2, max_new_tokens=100)
        assert len(result.token_ids) == 10 or result.finish_reason is FinishReason.STOP

    run(target, tiny_pair, scenario, closing_audit=True)


@pytest.mark.parametrize("committed", [range(5, 8), range(5, 15)])
def test_a_resume_with_nothing_left_is_refused(tiny_pair: Path, target: TorchModel, committed: Sequence[int]) -> None:
    async def scenario(client: EdgeClient, server: Server) -> None:
        await client.generate(PROMPT, committed_token_ids=committed, max_new_tokens=3)

    with pytest.raises(
        InvalidRequest, match="^max_new_tokens: 3 counts the whole text, of which (3|10) tokens are final; give more$"
    ):
        run(target, tiny_pair, scenario)
