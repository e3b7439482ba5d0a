"""Batches: finished results stay, mistakes are refused before anything is written, and Ctrl-C works at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.command.console import Console
from edge_client.apps.batch.results import open_results
from edge_client.apps.cli.main import main
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import impatient_options
from tests.support.processes.commands import environment, with_file_size
from tests.support.processes.servers import serving_in_thread
from tests.support.waiting import PATIENCE_S, START_S, wait_until

SHORT = ("--mode", "edge", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def address(tiny_pair: Path) -> Iterator[str]:
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        yield address


@pytest.fixture
def prompts(tiny_pair: Path, tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"id": {number}, "prompt": "the list {number}"}}\n' for number in range(5)))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def generate(*arguments: str | Path) -> int:
    return main(["generate", "--pair", "tiny", *map(str, arguments)])


def results(out: Path) -> list[dict[str, Any]]:
    content = out.read_text(encoding="utf-8")
    assert content == "" or content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def ids(out: Path) -> list[Any]:
    return [result["id"] for result in results(out)]


# --- Continuing an earlier run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 40, 5000])
def test_a_killed_run_is_continued(prompts: Path, out: Path, cut: int) -> None:
    """Finished lines are kept unchanged; half a line at the end is dropped."""
    assert generate("--prompts", prompts, "--out", out, *SHORT) == 0
    whole = results(out)
    content = out.read_bytes()
    out.write_bytes(content[: len(content) - cut])
    complete = content[: len(content) - cut].count(b"\n") + (cut == 1)
    assert generate("--prompts", prompts, "--out", out, *SHORT) == 0
    again = results(out)
    assert again[:complete] == whole[:complete], "with the times of the first run"
    assert [result["token_ids"] for result in again] == [result["token_ids"] for result in whole]
    assert ids(out) == [0, 1, 2, 3, 4]


def test_finished_lines_survive_a_cloud_outage_and_failed_lines_run_again(
    address: str, prompts: Path, out: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    head = prompts.with_name("head.jsonl")
    head.write_text("".join(prompts.read_text().splitlines(keepends=True)[1:3]))
    assert generate("--prompts", head, "--out", out, "--cloud", address, "--max-new-tokens", "4") == 0
    finished = results(out)
    absent = impatient_options(tmp_path_factory.mktemp("absent"))
    assert generate("--prompts", prompts, "--out", out, *absent, "--max-new-tokens", "4") == 1
    assert [("error" in result) for result in results(out)] == [True, False, False, True, True]
    assert results(out)[1:3] == finished
    assert generate("--prompts", prompts, "--out", out, "--cloud", address, "--max-new-tokens", "4") == 0
    assert ids(out) == [0, 1, 2, 3, 4], "in order of input, each once"
    assert results(out)[1:3] == finished
    assert not any("error" in result for result in results(out))
    assert sorted(path.name for path in out.parent.iterdir()) == ["head.jsonl", "in.jsonl", "out.jsonl"]


def test_results_of_other_prompts_are_not_lost(prompts: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--prompts", prompts, "--out", out, *SHORT) == 0
    before = out.read_bytes()
    prompts.write_text('{"id": 0, "prompt": "another"}\n{"id": "new", "prompt": "x"}\n')
    assert generate("--prompts", prompts, "--out", out, *SHORT) == 1
    assert "line 1: id: 0 has a result of another prompt or model" in capsys.readouterr().err
    assert sorted(ids(out), key=str) == [0, 1, 2, 3, 4, "new"]
    assert set(before.splitlines()) < set(out.read_bytes().splitlines())
    assert generate("--prompts", prompts, "--out", out, "--overwrite", *SHORT) == 0
    assert ids(out) == [0, "new"]


def test_a_repeated_id_is_an_error(prompts: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts.write_text('{"id": 1, "prompt": "x"}\n{"id": 1, "prompt": "y"}\n{"id": "1", "prompt": "z"}\n')
    for _ in range(2):
        assert generate("--prompts", prompts, "--out", out, *SHORT) == 1
        assert "line 2: id: 1 is that of an earlier line too" in capsys.readouterr().err
        assert [("error" in result, result["id"]) for result in results(out)] == [(False, 1), (True, 1), (False, "1")]


# --- Before anything is written ---------------------------------------------------------------------------------------

REFUSED: list[tuple[list[str], str]] = [
    (["--temperature", "nan"], "--temperature: nan is not a finite number"),
    (["--top-p", "2"], "--top-p: 2.0 is outside (0, 1]"),
    (["--max-new-tokens", "0"], "--max-new-tokens: 0 is outside [1, 4294967295]"),
    (["--stop", ""], "--stop: '' must have 1 to 256 characters"),
    (["--catch", "7"], "--catch: 7.0 is outside [0, 1]"),
    (["--config", "/nothere.yaml"], "/nothere.yaml: no such file"),
    (["--config", "{folder}/bad.yaml"], "device.providers: 'NoSuchProvider' is not available here"),
    (["--prompts", "{folder}/nothere"], "--prompts: {folder}/nothere: No such file or directory"),
    (["--prompts", "{folder}"], "--prompts: {folder} is a folder; give a file"),
    (["--out", "{folder}"], "--out: {folder}: Is a directory"),
    (["--out", "{folder}/in.jsonl"], "in.jsonl is the file that --prompts reads"),
    (["--out", "{folder}/hard"], "hard is the file that --prompts reads"),
    (["--out", "{folder}/symbolic"], "symbolic is the file that --prompts reads"),
    (["--out", "{folder}/notes"], "notes: line 1 is no result of an earlier run"),
]


@pytest.mark.parametrize(
    ("arguments", "words", "overwrite"),
    [
        *((arguments, words, []) for arguments, words in REFUSED),
        *((arguments, words, ["--overwrite"]) for arguments, words in REFUSED if "notes" not in words),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    prompts: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
    overwrite: list[str],
) -> None:
    folder = prompts.parent
    (folder / "hard").hardlink_to(prompts)
    (folder / "symbolic").symlink_to(prompts)
    (folder / "notes").write_text("mine\n")
    (folder / "bad.yaml").write_text("device:\n  providers: [NoSuchProvider]\n")
    out.write_text('{"id": 9, "prompt_token_ids": [1], "token_ids": [2]}\n')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    given = [argument.format(folder=folder) for argument in arguments]
    assert generate("--prompts", prompts, "--out", out, "--mode", "edge", *given, *overwrite) == 2
    assert words.format(folder=folder) in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


RESULT = '{"id": 9, "prompt_token_ids": [1], "token_ids": [2]}'


@pytest.mark.parametrize(
    "content",
    [
        '{"id": 1, "prompt": "x"}',
        '{"id": 1, "prompt": "x"}\n',
        f'{RESULT}\n{{"id": 7, "note": "mine"}}',
        "{}",
        "mine",
        "[1]",
    ],
)
def test_a_foreign_output_file_is_refused_and_left_unchanged(
    prompts: Path, out: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    out.write_text(content)
    assert generate("--prompts", prompts, "--out", out, "--mode", "edge") == 2
    assert "is no result of an earlier run" in capsys.readouterr().err
    assert out.read_text() == content


@pytest.mark.parametrize("content", [f'{RESULT}\n{{"id": 1, "pro', RESULT, f"{RESULT}\n{{"])
def test_nothing_is_written_before_the_first_result(
    prompts: Path, out: Path, tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    """The first result drops a half line of a killed run, and ends a last line without a newline."""
    out.write_text(content)
    with closing(open_results(str(out), Console.standard("test"), prompts.stat(), overwrite=False)) as results:
        assert out.read_text() == content
        results.add({"id": 1, "error": {}})
    first, second = out.read_text().splitlines()
    assert first == RESULT
    assert json.loads(second)["id"] == 1


def test_promises_are_accepted_for_gated_lines_only(
    address: str, prompts: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write_text(
        '{"id": 1, "prompt": "x"}\n{"id": 2, "prompt": "x", "mode": "gated"}\n'
        '{"id": 3, "prompt": "x", "catch": 0.5}\n{"id": 4, "prompt": "x", "mode": "gated", "max_deviation": 0.5}\n'
    )
    assert (
        generate("--prompts", prompts, "--out", out, "--cloud", address, "--catch", "0.9", "--max-new-tokens", "20")
        == 1
    )
    assert [("error" in result) for result in results(out)] == [False, False, True, False]
    complaint = "line 3: catch: mode is exact, and only gated keeps promises; ask for gated, or leave it out"
    assert capsys.readouterr().err == f"chaperone: {complaint}\n"
    assert generate("--cloud", address, "--catch", "0.9", "x") == 2
    assert "chaperone: --catch: mode is exact, and only gated" in capsys.readouterr().err


# --- Pipes, full disks, signals ---------------------------------------------------------------------------------------


def start(
    *arguments: str | Path, interpreter: Sequence[str] = (sys.executable,), **settings: Any
) -> subprocess.Popen[bytes]:
    command = [*interpreter, "-m", "edge_client.apps.cli.main", "generate", "--pair", "tiny", *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(), **{**pipes, **settings})


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=START_S)
    return process.returncode, (out or b"").decode(), err.decode()


@pytest.mark.parametrize(
    ("name", "target"), [("-", "-"), ("-", "out.jsonl"), ("/dev/stdin", "/dev/stdout"), ("fifo", "out.jsonl")]
)
def test_a_live_pipe_is_read_line_by_line_and_control_c_ends_the_wait(
    tiny_pair: Path, tmp_path: Path, name: str, target: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    source = str(tmp_path / "fifo") if name == "fifo" else name
    to = str(tmp_path / target) if target == "out.jsonl" else target
    process = start("--prompts", source, "--out", to, *SHORT, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, (tmp_path / "fifo").open("r+b", buffering=0) as fifo:
        pipe = fifo if name == "fifo" else process.stdin
        pipe.write(b'{"id": 1, "prompt": "x"}\n')
        pipe.flush()
        if target == "out.jsonl":
            wait_until(
                lambda: Path(to).exists() and Path(to).read_bytes().endswith(b"\n"), "the result is there", START_S
            )
            first = Path(to).read_bytes()
        else:
            first = process.stdout.readline()
        assert json.loads(first)["id"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    process.kill()
    process.stdout.close()
    process.stderr.close()


def test_control_c_during_a_batch_keeps_finished_lines(tiny_pair: Path, prompts: Path, out: Path) -> None:
    prompts.write_text('{"id": 1, "prompt": "x", "max_new_tokens": 2}\n{"id": 2, "prompt": "x"}\n')
    process = start("--prompts", prompts, "--out", out, "--mode", "edge", "--max-new-tokens", "4000")
    wait_until(lambda: out.exists() and out.read_bytes().endswith(b"\n"), "the first result is there", START_S)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "")
    assert ids(out) == [1]


FULL: list[tuple[str, str]] = [
    ("/dev/full", "--out: /dev/full: No space left on device"),
    ("{out}", "out.jsonl: File too large; what is finished stays, run it again to go on"),
]


@pytest.mark.parametrize(("target", "words"), FULL)
def test_a_full_disk_leaves_whole_lines_and_one_line_of_error(
    prompts: Path, out: Path, target: str, words: str
) -> None:
    arguments = ("--prompts", prompts, "--out", target.format(out=out), *SHORT)
    process = start(*arguments, interpreter=with_file_size(2500))
    code, _, err = ended(process)
    assert (code, len(err.splitlines())) == (1, 1)
    assert words in err
    if target == "{out}":
        assert 1 <= len(results(out)) < 5
        assert generate("--prompts", prompts, "--out", out, *SHORT) == 0
        assert ids(out) == [0, 1, 2, 3, 4]


def test_a_closed_pipe_is_no_error(prompts: Path) -> None:
    prompts.write_text("".join(f'{{"id": {number}, "prompt": "x"}}\n' for number in range(200)))
    process = start("--prompts", prompts, "--out", "-", *SHORT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert ended(process)[::2] == (0, "")


def test_a_second_run_with_the_same_file_is_refused(
    prompts: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start("--prompts", "-", "--out", out, *SHORT, stdin=subprocess.PIPE)
    assert first.stdin is not None
    first.stdin.write(b'{"id": 1, "prompt": "x"}\n')
    first.stdin.flush()
    wait_until(lambda: out.exists() and out.read_bytes().endswith(b"\n"), "the first run is under way", START_S)
    assert generate("--prompts", prompts, "--out", out, *SHORT) == 2
    assert "another run is writing it" in capsys.readouterr().err
    assert ended(first)[0] == 0
    assert ids(out) == [1]


# --- Several at once --------------------------------------------------------------------------------------------------


def test_concurrent_lines_keep_their_text_and_order(
    address: str, prompts: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write_text(
        "".join(
            f'{{"id": {number}, "prompt": "the list {number}", "max_new_tokens": {40 - 3 * number}}}\n'
            for number in range(9)
        )
        + "{\n"
    )
    runs: list[list[tuple[Any, Any, Any]]] = []
    decided: list[dict[Any, int]] = []
    for concurrency in ("1", "4"):
        out.unlink(missing_ok=True)
        options = ("--cloud", address, "--concurrency", concurrency, "--explain")
        assert generate("--prompts", prompts, "--out", out, *options) == 1
        runs.append([(line["id"], line.get("token_ids"), line.get("text")) for line in results(out)])
        rows = [json.loads(row) for row in capsys.readouterr().err.splitlines() if row.startswith("{")]
        decided.append({row["id"]: row["figures"]["position"] for row in rows})
        positions = [(row["id"], row["figures"]["position"]) for row in rows]
        for number in range(9):
            of_line = [position for line_id, position in positions if line_id == number]
            assert of_line, "each line has decisions under its id"
    assert runs[0] == runs[1]
    assert [line_id for line_id, _, _ in runs[0]] == [*range(9), None]
    assert decided[0].keys() == decided[1].keys()
