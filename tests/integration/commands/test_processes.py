"""The two commands as processes: terminals, pipes, and the start and stop of the server."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import subprocess
from asyncio import to_thread
from importlib.metadata import version
from pathlib import Path

import grpc.aio
import pytest

from chaperone_common.artefacts.manifest import load_manifest
from cloud_supervisor.cli import main as cloud_main
from edge_client.apps.cli.main import main
from tests.support.cloud.raw_stream import RawStream, opening
from tests.support.processes.commands import (
    announced,
    ended,
    on_a_terminal,
    server_process,
    start_client,
    start_python,
)
from tests.support.waiting import PATIENCE_S

PROMPT = "the list of a number is"
SERVE_TINY = ["serve", "--pair", "tiny", "--listen", "127.0.0.1:0"]


def generate(*arguments: str) -> int:
    return main(["generate", "--pair", "tiny", *arguments])


# --- Terminals -------------------------------------------------------------------------------------------------------


def generate_on_a_terminal(*arguments: str, **extra: str) -> tuple[int, str]:
    return on_a_terminal("generate", "--pair", "tiny", *arguments, **extra)


def test_colours_are_for_terminals_that_want_them(tiny_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--mode", "edge", "--max-new-tokens", "20", "--temperature", "0.8", "--seed", "0", PROMPT)
    assert generate(*arguments) == 0
    plain = capsys.readouterr().out
    code, coloured = generate_on_a_terminal(*arguments)
    text, _, summary = re.sub(r"\x1b\[[0-9;]*m", "", coloured).rpartition("[")
    assert (code, text) == (0, plain)
    assert "\x1b[36m" in coloured, "drafted, and skipped by the gate"
    assert re.fullmatch(
        r"\d+ tokens, [\d.]+ tokens/s, 0 round trips waited for, 0 hidden, 0 overrides\]\ncolours: draft\n", summary
    )
    code, uncoloured = generate_on_a_terminal(*arguments, NO_COLOR="1")
    assert (code, uncoloured.rpartition("[")[0]) == (0, plain)
    assert "\x1b" not in uncoloured
    code, cut = generate_on_a_terminal(*arguments, "--max-new-tokens", "1", NO_COLOR="1")
    assert re.search(r"\[1 token, .* 0 overrides; cut at 1 token \(--max-new-tokens\)\]\n$", cut)


def test_a_closed_pipe_is_no_error(tiny_pair: Path) -> None:
    process = start_client("--mode", "edge", "--max-new-tokens", "2000", PROMPT)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    assert ended(process)[::2] == (0, "")


# --- The server's command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, marks=pytest.mark.timeout(400)), signal.SIGINT],  # the first server imports torch
)
def test_serve_prints_its_address_and_stops_cleanly(
    tiny_pair: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with server_process(fake_model=number is signal.SIGINT) as (process, address):
        assert generate("--cloud", address, "--max-new-tokens", "3", PROMPT) == 0
        process.send_signal(number)
        code, out, err = ended(process)
    assert (code, out) == (0, b"")
    assert "Traceback" not in err
    assert "then open streams have 30.0 s to finish" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_at_once(tiny_pair: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "cloud.yaml"
    config.write_text("grace_seconds: 60\n")

    async def interrupt(process: subprocess.Popen[bytes], address: str) -> float:
        """Return the seconds from the second signal to the end of a process whose stream stays open."""
        async with grpc.aio.insecure_channel(address) as channel:
            stream = RawStream(channel)
            await stream.send(opening(load_manifest(tiny_pair / "cloud", role="cloud").tokenizer_digest))
            assert await stream.read() is not None
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while b"then open streams have 60.0 s" not in (line := await to_thread(process.stderr.readline)):
                assert line, "it ended at the first signal"
            began_s = asyncio.get_running_loop().time()
            process.send_signal(number)
            await to_thread(process.wait, PATIENCE_S)
            return asyncio.get_running_loop().time() - began_s

    with server_process("--config", str(config), fake_model=True) as (process, address):
        assert asyncio.run(interrupt(process, address)) < PATIENCE_S / 2, "long before the streams' 60 s are over"
        assert process.returncode == 128 + number


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from cloud_supervisor.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_cheap_checks_precede_the_loading_of_the_model(tiny_pair: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(tiny_pair, tmp_path / "models" / "tiny")
    (damaged / "cloud" / "config.json").write_text("{}")
    home = {"CHAPERONE_HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for listen, code, words in (
            (f"127.0.0.1:{port}", 2, f"listen: '127.0.0.1:{port}' cannot be bound (Address already in use)"),
            ("unix:/nowhere/x", 2, "listen: 'unix:/nowhere/x' cannot be bound: /nowhere is not a folder"),
            ("127.0.0.1:0", 1, "config.json: 2 bytes, the manifest says"),
        ):
            process = start_python("-c", WITHOUT_TORCH, "serve", "--pair", "tiny", "--listen", listen, **home)
            ended_with, _, err = ended(process)
            assert (ended_with, err.count("\n")) == (code, 1), err
            assert words in err


SERVE = [
    (["--listen", "0.0.0.0:0"], 2, "listen: '0.0.0.0:0' can be reached from other machines, which needs TLS"),
    (["--listen", "127.0.0.1:99999"], 2, "--listen: '127.0.0.1:99999': there is no port 99999"),
    (["--threads", "0"], 2, "--threads: 0: Input should be greater than or equal to 1"),
    (["--pair", "nothere"], 2, "pair: 'nothere' is not in models.yaml; known: default, "),
    (["--pair", "default"], 1, "chaperone-cloud models pull --pair default"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), SERVE, ids=[words for _, _, words in SERVE])
def test_serve_refuses_impossible_settings(
    tiny_pair: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    try:
        ended_with: int | str | None = cloud_main([*SERVE_TINY, "--dtype", "float32", *arguments])
    except SystemExit as ended:  # wrong usage, from argparse
        ended_with = ended.code
    assert ended_with == code
    assert words in capsys.readouterr().err


FROZEN_AT_EXIT = """
import atexit, gc, runpy
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 1000, flush=True))  # runs last
runpy.run_module("tests.support.processes.fake_server", run_name="__main__", alter_sys=True)
"""


def test_a_server_that_has_stopped_does_not_look_for_garbage_first(tiny_pair: Path) -> None:
    """With torch this takes seconds, which a service manager may not wait."""
    server = start_python("-c", FROZEN_AT_EXIT, "serve", "--pair", "tiny", "--listen", "127.0.0.1:0")
    assert server.stdout is not None
    announced(server.stdout)
    server.send_signal(signal.SIGTERM)
    code, out, _ = ended(server)
    assert (code, out) == (0, b"frozen True\n")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cloud_main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"chaperone-cloud {version('chaperone-llm')}\n"


MISSING = [
    (SERVE_TINY, "torch", "[cloud]"),
    (SERVE_TINY, "grpc", "[cloud]"),
    (["models", "pull"], "tqdm", "[cloud,build]"),
]


@pytest.mark.parametrize(("arguments", "package", "extras"), MISSING)
def test_a_missing_package_is_named_with_its_remedy(
    tiny_pair: Path, arguments: list[str], package: str, extras: str
) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; from cloud_supervisor.cli import main; sys.exit(main())"
    code, _, err = ended(start_python("-c", script, *arguments))
    assert (code, "Traceback" in err) == (1, False)
    assert package in err
    assert f"pip install 'chaperone-llm{extras}'" in err


def test_a_device_without_its_packages_names_the_extra() -> None:
    """`pip install .` without an extra leaves the command, and not its libraries."""
    script = (
        "import sys; sys.modules[{!r}] = None; from chaperone_common.command.entry import device; sys.exit(device())"
    )
    for package in ("grpc", "onnxruntime", "tokenizers"):
        code, out, err = ended(start_python("-c", script.format(package), "generate", "hi"))
        message = f"chaperone: the package {package} is not installed; run `pip install 'chaperone-llm[edge]'`\n"
        assert (code, out, err) == (1, b"", message)
    code, _, err = ended(start_python("-c", script.format("edge_client.gate"), "generate", "hi"))
    assert (code, "Traceback" in err, "pip install" in err) == (1, True, False), "a bug of our own"


@pytest.mark.parametrize("module", ["chaperone_common.artefacts.registry", "cloud_supervisor.pairs.listing"])
def test_a_missing_module_of_our_own_is_a_bug_with_its_traceback(module: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; from cloud_supervisor.cli import main; sys.exit(main())"
    code, _, err = ended(start_python("-c", script, "models", "list"))
    assert (code, "Traceback" in err, "pip install" in err) == (1, True, False)


def test_serve_names_a_mistake_in_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("pair: tiny\nlimits:\n  max_sesions: 3\n")
    assert cloud_main(["serve", "--config", str(config)]) == 2
    assert f"{config}:3: limits.max_sesions: unknown key (did you mean 'max_sessions'?)" in capsys.readouterr().err
