"""The strategy of llama.cpp's server, against a program that answers as it does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kit.processes import ServerFailed
from benchmarks.measured.llama_server import LlamaCpp, LlamaRunner, llama_server
from benchmarks.measured.runners import Request
from chaperone_common.errors import ConfigError
from chaperone_common.types import FinishReason

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(STATUS)
        self.end_headers()
        for token_id in asked["prompt"][: asked["n_predict"]]:
            self.wfile.write(b"data: " + json.dumps({"stop": False, "tokens": [token_id + 1]}).encode() + b"\\n\\n")
        if ENDS:
            last = {"stop": True, "stop_type": "limit", "tokens": []}
            self.wfile.write(b"data: " + json.dumps(last).encode() + b"\\n\\n")

    def log_message(self, *args):
        pass

if "--version" in sys.argv:
    print("version: 7 (abc)", file=sys.stderr)
elif STARTS:
    HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., LlamaCpp]:
    """Return a function that makes the program and weights for it."""

    def make(*, status: int = 200, ends: bool = True, starts: bool = True) -> LlamaCpp:
        file = tmp_path / "llama-server"
        file.write_text(f"#!{sys.executable}\nSTATUS, ENDS, STARTS = {status}, {ends}, {starts}\n{SERVER}")
        file.chmod(0o755)
        (tmp_path / "m.gguf").write_bytes(bytes(2_000_000))
        return LlamaCpp(file, tmp_path / "m.gguf")

    return make


@pytest.mark.usefixtures("tiny_pair")
def test_a_text_is_streamed_and_timed_from_its_first_token(program: Callable[..., LlamaCpp]) -> None:
    files = program()
    assert files.described() == {"version": "version: 7 (abc)", "weights_mb": 2}
    with llama_server(files, (0,)) as address:
        runner = LlamaRunner("tiny", address)
        prompt = runner.prepare("Count to ten.")
        measured = asyncio.run(runner.generate(Request(prompt, 0.0, 1, 4, warm=True)))
    assert measured.token_ids == tuple(token_id + 1 for token_id in prompt.token_ids[:4])
    assert measured.untimed_tokens == 1
    assert measured.stats.finish_reason is FinishReason.LENGTH
    assert list(measured.commit_ms) == sorted(measured.commit_ms)
    assert measured.stats.decode_ms == pytest.approx(measured.commit_ms[-1] - measured.commit_ms[0])


@pytest.mark.parametrize(
    ("faults", "message"), [({"status": 503}, "answers 503"), ({"ends": False}, "ended after 4 tokens")]
)
@pytest.mark.usefixtures("tiny_pair")
def test_a_text_that_does_not_end_is_a_failure(
    program: Callable[..., LlamaCpp], faults: dict[str, int], message: str
) -> None:
    with llama_server(program(**faults), (0,)) as address:
        runner = LlamaRunner("tiny", address)
        with pytest.raises(ServerFailed, match=message):
            asyncio.run(runner.generate(Request(runner.prepare("Hello."), 0.0, 1, 4, warm=False)))


def test_a_server_that_does_not_start_is_named(program: Callable[..., LlamaCpp]) -> None:
    with pytest.raises(ServerFailed, match="exit code 0"), llama_server(program(starts=False), (0,)):
        pass


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--llama-server: .*nowhere is no file"):
        LlamaCpp(tmp_path / "nowhere", tmp_path / "m.gguf").check()
