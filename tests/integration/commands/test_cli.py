"""`chaperone generate`: its output, its messages and its exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.stats import GenerationStats
from cloud_supervisor.cli import main as cloud_main
from cloud_supervisor.server import Server
from edge_client.apps.cli.main import main
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import NOBODY, impatient_options, retracting_options
from tests.support.processes.servers import serving_in_thread

PROMPT = "the list of a number is"
RESULT_KEYS = {"prompt_token_ids", "token_ids", "text", "origins", "finish_reason", "stats"}


@pytest.fixture(scope="module")
def served(tiny_pair: Path) -> Iterator[tuple[Server, str]]:
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as server_and_address:
        yield server_and_address


@pytest.fixture
def address(served: tuple[Server, str]) -> str:
    return served[1]


def generate(*arguments: str) -> int:
    return main(["generate", "--pair", "tiny", *arguments])


def with_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# --- One prompt ------------------------------------------------------------------------------------------------------


def test_argument_and_standard_input_are_the_same_prompt(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--cloud", address, "--max-new-tokens", "20", "--temperature", "0.7", "--seed", "3")
    assert generate(*options, PROMPT) == 0
    from_argument = capsys.readouterr()
    with_input(monkeypatch, PROMPT.encode())
    assert generate(*options) == 0
    from_input = capsys.readouterr()
    assert from_argument == from_input
    assert from_argument.err == ""
    assert from_argument.out.endswith("\n")
    assert "\x1b" not in from_argument.out


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud", "edge"])
def test_json_has_the_documented_keys(
    address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: str
) -> None:
    gate = retracting_options(tmp_path) if mode == "gated" else ()
    options = ("--cloud", address, "--mode", mode, *gate, "--max-new-tokens", "9", "--closing-audit")
    assert generate(*options, "--json", PROMPT) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == RESULT_KEYS
    assert result["stats"].keys() == {field.name for field in fields(GenerationStats)}
    assert len(result["token_ids"]) == len(result["origins"]) == result["stats"]["completion_tokens"]
    assert generate(*options, PROMPT) == 0
    assert capsys.readouterr().out == result["text"] + "\n"


def test_flags_reach_the_request(address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"pair: nothere\nmode: edge\ncloud:\n  address: {NOBODY}\ngeneration:\n  max_new_tokens: 3\n")
    assert generate("--config", str(config), "--json", PROMPT) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["completion_tokens"] == 3
    options = ("--mode", "cloud", "--cloud", address, "--max-new-tokens", "5", "--raw")
    assert generate("--config", str(config), *options, "--json", "x") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stats"]["completion_tokens"] == 5
    assert result["stats"]["bytes_up"] > 0
    assert len(result["prompt_token_ids"]) == 1


# --- Wrong usage and failures ----------------------------------------------------------------------------------------

USAGE = [
    (["--temperature", "-1", PROMPT], "--temperature: -1.0 is not a finite number >= 0; use 0 for greedy"),
    (["--top-p", "1.5", PROMPT], "--top-p: 1.5 is outside (0, 1]; use 1 to switch it off"),
    (["--max-new-tokens", "0", PROMPT], "--max-new-tokens: 0 is outside [1, 4294967295]"),
    (["--seed", "-1", PROMPT], "--seed: -1 is outside [0, 2**64 - 1]"),
    (["--stop", "", PROMPT], "--stop: '' must have 1 to 256 characters"),
    ([""], "prompt: it is empty; give some text"),
    (["the list " * 4096], "tokens leave no room in a context of 4096; shorten it"),
    (["--config", "/nothere.yaml", PROMPT], "/nothere.yaml: no such file"),
    (["--prompts", "/nothere.jsonl", "--out", "/dev/null"], "--prompts: /nothere.jsonl: No such file or directory"),
    (["--prompts", os.devnull, "--out", "/nothere/out.jsonl"], "--out: /nothere/out.jsonl: No such file or directory"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[words for _, words in USAGE])
def test_wrong_usage_exits_with_two(
    tiny_pair: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert generate("--mode", "edge", *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("chaperone: ")
    assert words in output.err
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "fast", PROMPT], "argument --mode: invalid choice: 'fast'"),
        (["--temperature", "hot", PROMPT], "argument --temperature: invalid float value: 'hot'"),
        (["--prompts", "in.jsonl"], "--prompts and --out belong together"),
        (["--out", "out.jsonl", PROMPT], "--prompts and --out belong together"),
        (["--prompts", "in.jsonl", "--out", "out.jsonl", PROMPT], "give a prompt or --prompts, not both"),
        (["--colour", PROMPT], "--colour: unknown flag (did you mean '--cloud'?)"),
    ],
)
def test_wrong_flags_exit_with_two(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        generate(*arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_mistake_in_the_configuration_exits_with_two(
    tiny_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("mode: edge\ngate:\n  polcy: always\ndevice:\n  threads: two\n")
    assert generate("--config", str(config), PROMPT) == 2
    complaint = capsys.readouterr().err
    assert f"{config}:3: gate.polcy: unknown key (did you mean 'policy'?)" in complaint
    assert f"{config}:5: device.threads: 'two' is not a whole number" in complaint


def test_undecodable_input_exits_with_two(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_input(monkeypatch, b"caf\xe9")
    assert generate("--mode", "edge") == 2
    assert "prompt: byte 3 of standard input is not UTF-8" in capsys.readouterr().err
    assert generate("--mode", "edge", "caf\udce9") == 2  # Python decodes an argument of other bytes to this
    assert "lone surrogate" in capsys.readouterr().err


def test_a_missing_model_exits_with_one(tiny_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--pair", "nothere", PROMPT) == 1
    assert "chaperone models pull --pair nothere --cloud" in capsys.readouterr().err


def test_a_corrupt_model_exits_with_one(
    tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_pair, tmp_path / "models" / "tiny")
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    for role, name in (("edge", "model.onnx.data"), ("cloud", "model.safetensors")):
        path = tmp_path / "models" / "tiny" / role / name
        path.write_bytes(path.read_bytes()[:1000])
    assert generate(PROMPT) == 1
    assert "model.onnx.data: 1000 bytes, the manifest says" in capsys.readouterr().err
    assert cloud_main(["serve", "--pair", "tiny"]) == 1
    assert "model.safetensors: 1000 bytes, the manifest says" in capsys.readouterr().err


def test_an_absent_cloud_exits_with_one(tiny_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(*impatient_options(tmp_path), PROMPT) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"chaperone: cloud: {NOBODY} cannot be reached" in output.err


def test_a_text_that_takes_too_long_names_the_flag(tiny_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert generate("--cloud", address, "--timeout", "0.1", PROMPT) == 1
    complaint = capsys.readouterr().err
    assert complaint == "chaperone: --timeout: the generation did not end within 0.1 s; give it more time\n"


def test_json_reports_an_absent_cloud(tiny_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(*impatient_options(tmp_path), "--json", PROMPT) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["error"]["type"] == "CloudUnavailable"
    assert NOBODY in result["error"]["message"]
    assert result["token_ids"] == []


# --- Many prompts ----------------------------------------------------------------------------------------------------

LINES: list[tuple[bytes, Any, str | None]] = [  # the line, its id, and its error
    (b'{"id": "good", "prompt": "the list"}', "good", None),
    (b'{"id": "caf\xe9", "prompt": "x"}', None, "line 2: byte 11 is not UTF-8; save the file as UTF-8"),
    (b'{"id": "cut", "prompt": ', None, "line 3: not valid JSON: Expecting value"),
    (b'["id", "prompt"]', None, "line 4: a JSON object is expected, this is list"),
    (b'{"prompt": "x"}', None, "line 5: id: missing; give each line one"),
    (b'{"id": 6, "prompt": "x", "messages": []}', 6, "line 6: prompt, messages: give exactly one of them"),
    (b'{"id": 7}', 7, "line 7: prompt, messages: give exactly one of them"),
    (b'{"id": 8, "prompt": "x", "temprature": 1}', 8, "line 8: temprature: unknown key (did you mean 'temperature'?)"),
    (b'{"id": 9, "prompt": "x", "temperature": -1}', 9, "line 9: temperature: -1.0 is not a finite number >= 0"),
    (b'{"id": 10, "prompt": "x", "top_p": 1.1}', 10, "line 10: top_p: 1.1 is outside (0, 1]"),
    (b'{"id": 11, "prompt": "x", "max_new_tokens": "9"}', 11, "line 11: max_new_tokens: '9' is not a whole number"),
    (b'{"id": 12, "prompt": ""}', 12, "line 12: prompt: it is empty"),
    (b'{"id": 13, "prompt": 5}', 13, "line 13: prompt: 5 is not text"),
    (b'{"id": 14, "messages": "x"}', 14, "line 14: messages: 'x' is not a list"),
    (b'{"id": 15, "messages": [{"role": "boss", "content": "x"}]}', 15, "line 15: messages[0].role: 'boss' is none of"),
    (b'{"id": 16, "prompt": "x", "stop": 5}', 16, "line 16: stop: 5 is neither a string nor a list of strings"),
    (b'{"id": 17, "prompt": "x", "raw": "yes"}', 17, "line 17: raw: 'yes' is neither true nor false"),
    (b'{"id": 18, "prompt": "\\ud800"}', None, "line 18: not valid JSON: lone surrogate"),
    (b'{"id": 19, "prompt": "' + b"the list " * 4096 + b'"}', 19, "tokens leave no room in a context of 4096"),
    (b"", None, None),
    (b'{"id": {"any": "value"}, "messages": [{"role": "user", "content": "x"}], "stop": null}', {"any": "value"}, None),
    (b'{"id": "caf\xc3\xa9", "prompt": "x", "mode": "cloud", "max_new_tokens": 2}', "café", None),
]


def test_a_batch_reports_its_bad_lines_and_runs_the_others(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_bytes(b"\n".join(line for line, _, _ in LINES))
    options = ("--prompts", str(prompts), "--out", str(out), "--cloud", address, "--max-new-tokens", "4")
    assert generate(*options) == 1
    complaints = capsys.readouterr().err.splitlines()
    results = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    expected = [(identity, wrong) for line, identity, wrong in LINES if line]
    assert [result["id"] for result in results] == [identity for identity, _ in expected]
    for result, (_, wrong) in zip(results, expected, strict=True):
        if wrong is None:
            assert result.keys() == {"id", *RESULT_KEYS}
            assert result["text"]
        else:
            assert wrong in result["error"]["message"]
            assert re.match(r"line \d+: ", result["error"]["message"])
            assert result["error"]["type"] in ("InvalidRequest", "PromptTooLong")
            assert complaints.pop(0) == f"chaperone: {result['error']['message']}"
    assert complaints == []
    assert results[-1]["stats"]["completion_tokens"] == 2
    assert "caf\u00e9" in out.read_text(encoding="utf-8"), "not escaped"


def test_a_batch_without_mistakes_exits_with_zero(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"id": 1, "prompt": "x"}\n')
    assert generate("--prompts", str(prompts), "--out", str(out), "--cloud", address, "--max-new-tokens", "4") == 0
    assert capsys.readouterr() == ("", "")
    assert generate("--prompts", str(prompts), "--out", str(prompts), "--cloud", address) == 2
    assert "is the file that --prompts reads" in capsys.readouterr().err
    assert prompts.read_text(), "and it remains"


def test_a_batch_without_a_cloud_reports_every_line(
    tiny_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"id": 1, "prompt": "x"}\n{"id": 2, "prompt": "x", "mode": "edge"}\n')
    options = ("--prompts", str(prompts), "--out", str(out), *impatient_options(tmp_path))
    assert generate(*options, "--max-new-tokens", "4") == 1
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["error"]["type"] == "CloudUnavailable"
    assert "line 1: cloud: " in first["error"]["message"]
    assert (first["token_ids"], first["finish_reason"], first["stats"]["completion_tokens"]) == ([], None, 0)
    assert second.keys() == {"id", *RESULT_KEYS}
