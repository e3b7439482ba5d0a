"""llama.cpp's server over the same link: it streams the same model token by token, as a user would have it instead.

It is built from the source package of llama-cpp-python; docs/benchmarks.md has the commands. It draws sampled text with
its own random numbers. As for assisted generation, the clock starts with the first token, which is not counted.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kit.processes import ServerFailed
from benchmarks.measured.runners import Measured, Request
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason, PromptInput
from edge_client.text import ChatTemplate, Tokenizer

LLAMA_SERVER = "llama-server"
_LOADING_S = 120.0
_ANSWER_S = 600.0
_LOOK_S = 0.1
_CONTEXT_TOKENS = 4096
_UNMEASURED = ("prefill_ms", "edge_compute_ms", "cloud_compute_ms", "cloud_queue_ms", "energy_j")


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The server's program, and the model's weights for it."""

    program: Path
    weights: Path

    def check(self) -> None:
        """Raise ConfigError if a file is missing."""
        for option, file in (("--llama-server", self.program), ("--gguf", self.weights)):
            if not file.is_file():
                raise ConfigError(f"{option}: {file} is no file; see docs/benchmarks.md for how to make it")

    def described(self) -> dict[str, Any]:
        """Return the version of the program and the size of the weights, as a result names them."""
        answer = subprocess.run([self.program, "--version"], capture_output=True, text=True, timeout=60, check=False)
        version = next((line for line in (answer.stderr + answer.stdout).splitlines() if "version" in line), "unknown")
        return {"version": version.strip(), "weights_mb": round(self.weights.stat().st_size / 1e6)}


@contextmanager
def llama_server(files: LlamaCpp, cores: Sequence[int]) -> Iterator[str]:
    """Run the server on some cores, and yield its address."""
    port = _free_port()
    command = [str(files.program), "-m", str(files.weights), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--threads", str(len(cores)), "--parallel", "1", "--ctx-size", str(_CONTEXT_TOKENS)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    with process:
        try:
            _wait_until_ready(process, port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


class LlamaRunner:
    """A `Runner` of llama.cpp's server at an address."""

    def __init__(self, pair: str, address: str) -> None:
        folder = pair_folder(pair, "cloud")
        self._manifest = load_manifest(folder, role="cloud")
        self._tokenizer = Tokenizer.load(folder, self._manifest)
        self._template = ChatTemplate.load(folder, self._tokenizer)
        self._address = address

    def prepare(self, text: str) -> PromptInput:
        rendered = self._template.render([{"role": "user", "content": text}])
        return PromptInput(self._tokenizer.encode(rendered))

    async def generate(self, request: Request) -> Measured:
        asked = {
            "prompt": list(request.prompt.token_ids),
            "n_predict": request.max_new_tokens,
            "temperature": request.temperature,
            "samplers": ["temperature"],
            "seed": request.seed,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": False,
        }
        return await asyncio.to_thread(self._stream, request, asked)

    async def aclose(self) -> None:
        """Do nothing; each text has a connection of its own."""

    def _stream(self, request: Request, asked: dict[str, Any]) -> Measured:
        token_ids: list[int] = []
        commit_ms: list[float] = []
        connection = http.client.HTTPConnection(self._address, timeout=_ANSWER_S)
        began_s = time.perf_counter()
        try:
            connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
            stopped_by = None
            with connection.getresponse() as response:
                if response.status != http.HTTPStatus.OK:
                    raise ServerFailed(f"{LLAMA_SERVER} answers {response.status}")
                while stopped_by is None and (line := response.readline()):
                    if not line.startswith(b"data: "):
                        continue
                    event = json.loads(line.removeprefix(b"data: "))
                    now_ms = (time.perf_counter() - began_s) * 1e3
                    if event["stop"]:
                        stopped_by = event["stop_type"]
                    else:
                        token_ids += event["tokens"]
                        commit_ms += [now_ms] * len(event["tokens"])
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise ServerFailed(f"{LLAMA_SERVER}: {error!r}") from error
        finally:
            connection.close()
        if stopped_by is None or not token_ids:
            raise ServerFailed(f"{LLAMA_SERVER} ended after {len(token_ids)} tokens")
        total_ms = (time.perf_counter() - began_s) * 1e3
        stats = GenerationStats(
            prompt_tokens=len(request.prompt.token_ids),
            completion_tokens=len(token_ids),
            finish_reason=FinishReason.LENGTH if stopped_by == "limit" else FinishReason.STOP,
            ttft_ms=commit_ms[0],
            ttft_committed_ms=commit_ms[0],
            total_ms=total_ms,
            decode_ms=commit_ms[-1] - commit_ms[0] if request.warm else None,
        )
        untimed = int(request.warm)
        return Measured(tuple(token_ids), tuple(commit_ms), stats, untimed_tokens=untimed, unmeasured=_UNMEASURED)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until_s = time.monotonic() + _LOADING_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            raise ServerFailed(f"{LLAMA_SERVER} ended with exit code {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except (OSError, http.client.HTTPException):
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(_LOOK_S)
    raise ServerFailed(f"{LLAMA_SERVER} loads for longer than {_LOADING_S:.0f} s")
