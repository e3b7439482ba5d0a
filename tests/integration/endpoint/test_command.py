"""`chaperone serve` as a process: it says where it listens, ends with a signal, and refuses what is not safe."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from pathlib import Path

import pytest

from edge_client.apps.cli import serve
from edge_client.apps.cli.main import main
from tests.support.processes.clients import NOBODY
from tests.support.processes.commands import start_python
from tests.support.waiting import PATIENCE_S, START_S

COMMAND = ("-m", "edge_client.apps.cli.main", "serve", "--pair", "tiny", "--cloud", NOBODY, "--listen", "127.0.0.1:0")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0)])
def test_it_serves_until_a_signal(tiny_pair: Path, number: signal.Signals, code: int) -> None:
    process = start_python(*COMMAND, "--mode", "edge")
    alarm = threading.Timer(START_S, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("serving tiny on http://127.0.0.1:"), line
        connection = http.client.HTTPConnection(line.split("//")[1].split("/")[0], timeout=PATIENCE_S)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["usage"]["completion_tokens"] <= 3
        connection.close()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out, err) == (code, b"", b"")
    finally:
        alarm.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--listen", "0.0.0.0:0"), "listen: other machines reach 0.0.0.0:0, and everybody could use the endpoint"),
        (("--listen", "localhost"), "there is no port"),
        (("--listen", "192.0.2.1:8080", "--api-key-file", "KEY"), "listen: '192.0.2.1:8080' cannot be bound"),
        (("--api-key-file", "SHORT"), "a key is one word of at least 16 characters"),
        (("--api-key-file", "WORDS"), "a key is one word of at least 16 characters"),
        (("--api-key-file", "LATIN"), "it is not ASCII text"),
        (("--api-key-file", "MISSING"), "cannot be read: No such file or directory"),
    ],
)
def test_what_is_not_safe_is_refused(
    tiny_pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    for name, content in (("KEY", b"a" * 32), ("SHORT", b"abc"), ("WORDS", b"a key " * 9), ("LATIN", b"\xe9" * 32)):
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["serve", "--pair", "tiny", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    monkeypatch.setattr(serve, "load_server", missing)
    assert main(["serve", "--pair", "tiny"]) == 2
    assert "serve: the package fastapi is not installed; run `pip install 'chaperone-llm[serve]'`" in (
        capsys.readouterr().err
    )
