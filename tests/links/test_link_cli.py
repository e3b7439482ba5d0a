"""`chaperone-link`: a link in a process of its own, its end, and its refusals."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge_client.apps.cli.main import main as device_main
from link_emulator import profile_names
from link_emulator.command import main

UNUSED = "127.0.0.1:1"


@contextmanager
def echo_server() -> Iterator[str]:
    """Answers one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(4096):
                    connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(30)


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_link_carries_bytes_and_ends_by_a_signal(ending: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "link_emulator.command", "run", "--profile", "lan", "--seed", "3"]
    with echo_server() as address:
        process = subprocess.Popen(
            [*command, "--to", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            host, _, port = process.stdout.readline().strip().rpartition(":")
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(b"hello")
                connection.shutdown(socket.SHUT_WR)
                assert connection.makefile("rb").read() == b"hello"
            process.send_signal(ending)
            output, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert output == ""
    assert errors.startswith("[1 connections, 0 reset; up 5 bytes, ")
    assert "Traceback" not in errors


def test_profiles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "label", "rtt"]
    assert [line.split()[0] for line in lines] == profile_names()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--profile", "4gg"), "profile: '4gg' is not known (did you mean '4g'?); known: "),
        (("--profile", "./nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--rtt-ms", "-3"), "--rtt-ms: -3.0 is not a time from 0 to 120000 ms"),
        (("--rtt-ms", "nan"), "--rtt-ms: nan is not a time"),
        (("--rtt-ms", "20", "--seed", "-1"), "--seed: -1 is negative; give a whole number from 0 on"),
        (("--rtt-ms", "20", "--listen", "0.0.0.0:7000"), "listen: '0.0.0.0:7000' is not HOST:PORT of this machine"),
    ],
)
def test_wrong_flags_exit_with_two(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    assert main(["run", "--to", UNUSED, *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_taken_port_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["run", "--rtt-ms", "20", "--to", UNUSED, "--listen", address]) == 2
    assert f"listen: {address} cannot be listened on: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("--profile", "lan", "--rtt-ms", "20")])
def test_a_link_is_named_once(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--to", UNUSED, *arguments])
    assert ended.value.code == 2
    assert "--rtt-ms" in capsys.readouterr().err


@pytest.mark.parametrize("rest", [[], ["profiles"], ["run", "--rtt-ms", "5", "--to", "a b"], ["--help"]])
def test_chaperone_link_names_the_script_that_replaced_it(capsys: pytest.CaptureFixture[str], rest: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        device_main(["link", *rest])
    assert ended.value.code == 2
    expected = f"chaperone: error: `chaperone link` is now `{shlex.join(['chaperone-link', *rest])}`\n"
    assert capsys.readouterr().err.endswith(expected)
