"""`chaperone generate --logprobs K`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.apps.cli.main import main
from tests.support.fakes.target import fake_target
from tests.support.processes.servers import serving_in_thread

PROMPT = "the list of a number is"


@pytest.fixture(scope="module")
def address(tiny_pair: Path) -> Iterator[str]:
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        yield address


def test_the_result_lists_every_token(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pair", "tiny", "--cloud", address, "--mode", "cloud", "--max-new-tokens", "5"]
    assert main(["generate", *options, "--json", "--logprobs", "2", PROMPT]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [found["token_id"] for found in result["logprobs"]] == result["token_ids"]
    for found in result["logprobs"]:
        assert found.keys() == {"token_id", "token", "bytes", "logprob", "source", "top_logprobs"}
        assert found["source"] == "cloud"
        first, second = found["top_logprobs"]
        assert first.keys() == {"token_id", "token", "bytes", "logprob"}
        assert (first["token_id"], first["logprob"]) == (found["token_id"], found["logprob"]), "greedy"
        assert second["logprob"] <= first["logprob"] <= 0
    assert main(["generate", *options, "--json", PROMPT]) == 0
    assert "logprobs" not in json.loads(capsys.readouterr().out)


def test_lines_of_a_batch_choose_for_themselves(address: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"id": "flag", "prompt": PROMPT},
        {"id": "none", "prompt": PROMPT, "logprobs": False},
        {"id": "own", "prompt": PROMPT, "logprobs": True, "top_logprobs": 0},
        {"id": "many", "prompt": PROMPT, "top_logprobs": 21},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    options = ["--pair", "tiny", "--cloud", address, "--max-new-tokens", "3", "--logprobs", "4"]
    assert main(["generate", *options, "--prompts", str(prompts), "--out", str(out)]) == 1
    results = {result["id"]: result for result in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert [len(found["top_logprobs"]) for found in results["flag"]["logprobs"]] == [4, 4, 4]
    assert "logprobs" not in results["none"]
    assert [found["top_logprobs"] for found in results["own"]["logprobs"]] == [[], [], []]
    message = "line 4: top_logprobs: 21 is outside [0, 20]; use 0 for the chosen tokens alone"
    assert results["many"]["error"] == {"type": "InvalidRequest", "message": message}


def test_a_failure_lists_the_final_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pair", "tiny", "--mode", "edge", "--max-new-tokens", "500", "--timeout", "0.2", "--temperature", "2"]
    assert main(["generate", *options, "--json", "--logprobs", "0", PROMPT]) in (0, 1)
    result = json.loads(capsys.readouterr().out)
    assert [found["token_id"] for found in result["logprobs"]] == result["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--logprobs", "2"], "--logprobs is printed as JSON; give --json, or --prompts and --out"),
        (["--logprobs", "21", "--json"], "--logprobs: 21 is outside [0, 20]; use 0 for the chosen tokens alone"),
        (["--logprobs", "many", "--json"], "argument --logprobs: invalid int value: 'many'"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code: object
    try:
        code = main(["generate", "--pair", "tiny", *arguments, PROMPT])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert message in capsys.readouterr().err
