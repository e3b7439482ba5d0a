"""`chaperone generate --explain`: every decision on standard error, and nothing of prompt or text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_client import Decision, EdgeClient, EdgeConfig, Finished, InvalidRequest, Mode, Planned
from edge_client.apps.cli.main import main
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import retracting_options
from tests.support.processes.servers import serving_in_thread

PROMPT = "the quetzal of a number is"
ACTIONS = {"Draft", "CatchUp", "Send", "Wait", "HandOver"}
WORDS = {"id", "action", "reason", "figures", "text", "branches", "tokens", "continuation_tokens"}


@pytest.fixture(scope="module")
def address(tiny_pair: Path) -> Iterator[str]:
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        yield address


def generate(*arguments: str) -> int:
    return main(["generate", "--pair", "tiny", "--seed", "1", *arguments])


def lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[dict[str, Any]]]:
    output = capsys.readouterr()
    return output.out, [json.loads(line) for line in output.err.splitlines()]


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud", "edge"])
def test_explain_prints_a_line_per_decision_and_keeps_the_text(
    address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: str
) -> None:
    gate = retracting_options(tmp_path) if mode == "gated" else ()
    options = ("--cloud", address, "--mode", mode, *gate, "--max-new-tokens", "16", PROMPT)
    assert generate(*options) == 0
    text, decisions = lines(capsys)
    assert decisions == []
    assert generate(*options, "--explain") == 0
    explained, decisions = lines(capsys)
    assert explained == text
    assert {row["action"] for row in decisions} <= ACTIONS
    assert all(row["reason"] for row in decisions)
    assert all(row.keys() <= WORDS - {"id"} for row in decisions)
    moments = [row["figures"]["at_ms"] for row in decisions]
    assert moments == sorted(moments)
    assert moments[0] >= 0
    first = decisions[0]["figures"]["position"]
    assert first > 1, "the prompt counts"
    assert all(first <= row["figures"]["position"] <= first + 16 for row in decisions)
    if mode in ("exact", "edge"):
        assert "Draft" in {row["action"] for row in decisions}
    if mode == "cloud":
        assert decisions[0]["action"] == "HandOver"
        assert decisions[0]["tokens"] == 16


def test_explained_lines_hold_nothing_of_prompt_or_text(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--cloud", address, "--max-new-tokens", "16", "--explain")
    assert generate(*options, PROMPT) == 0
    _, decisions = lines(capsys)
    assert generate(*options, "another thing to ask about") == 0
    _, others = lines(capsys)
    reasons = {row["reason"] for row in decisions + others}
    assert not any(word in reason for reason in reasons for word in ("quetzal", "another thing"))
    for row in decisions + others:
        assert all(isinstance(figure, int | float) for figure in row["figures"].values())
        assert isinstance(row.get("text", True), bool), "whether the text is drafted, not which"


def test_a_batch_labels_each_decision_with_its_line(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(
        '{"id": "first", "prompt": "x"}\n{"id": "bad"}\n{"id": 3, "prompt": "y", "mode": "cloud"}\n', encoding="utf-8"
    )
    options = ("--prompts", str(prompts), "--out", str(out), "--cloud", address, "--max-new-tokens", "4", "--explain")
    assert generate(*options) == 1
    rows = capsys.readouterr().err.splitlines()
    decisions = [json.loads(row) for row in rows if row.startswith("{")]
    assert [row for row in rows if not row.startswith("{")] == [
        "chaperone: line 2: prompt, messages: give exactly one of them"
    ]
    ids = [row["id"] for row in decisions]
    assert set(ids) == {"first", 3}
    assert ids == sorted(ids, key=["first", 3].index), "one after the other"


def test_decisions_of_overlapping_generations_have_their_ids(tiny_pair: Path) -> None:
    """One task may take the events of both in turn."""
    decisions: dict[str, list[Decision]] = {}
    endings: list[Finished] = []

    async def both() -> dict[str, int]:
        async with EdgeClient(EdgeConfig(pair="tiny", mode=Mode.EDGE)) as client:
            requests = {
                "short": client.request("hi", max_new_tokens=8),
                "long": client.request("a prompt of several more words than the other one", max_new_tokens=8),
            }
            streams = [client.stream(made, explain=True) for made in requests.values()]
            while events := [event for stream in streams if (event := await anext(stream, None)) is not None]:
                for event in events:
                    if isinstance(event, Planned):
                        decisions.setdefault(event.generation_id, []).append(event.decision)
                    elif isinstance(event, Finished):
                        endings.append(event)
            plain = [event async for event in client.stream("hi", max_new_tokens=1)]
            assert not any(isinstance(event, Planned) for event in plain)
            return {name: len(made.prompt.token_ids) for name, made in requests.items()}

    lengths = asyncio.run(both())
    assert lengths["short"] + 8 < lengths["long"]
    assert {*decisions} == {ending.stats.generation_id for ending in endings}
    found = sorted([decision.figures["position"] for decision in each] for each in decisions.values())
    assert found == sorted(list(range(length, length + 8)) for length in lengths.values())


def test_a_function_for_decisions_is_refused(tiny_pair: Path) -> None:
    listener: Any = print

    async def ask() -> None:
        async with EdgeClient(EdgeConfig(pair="tiny", mode=Mode.EDGE)) as client:
            with pytest.raises(InvalidRequest, match="explain: <built-in function print> is not True or False"):
                await anext(client.stream("hi", explain=listener))

    asyncio.run(ask())


def test_with_json_only_the_result_is_on_standard_output(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--cloud", address, "--max-new-tokens", "4", "--json", "--explain", PROMPT) == 0
    text, decisions = lines(capsys)
    assert json.loads(text)["stats"]["completion_tokens"] == 4
    assert decisions
