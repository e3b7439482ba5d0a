"""Arguments that a command does not take: the message names them alone, with what to give instead."""

from __future__ import annotations

import pytest

from cloud_supervisor.cli import main as cloud_main
from edge_client.apps.cli.main import main
from edge_client.apps.cli.options import instead_of_flag, instead_of_service_flag
from edge_client.refused_names import _SENTENCES
from link_emulator.command import main as link_main

NAMES = [name for names, _ in _SENTENCES for name in names.split()]

# The arguments, and the whole message.
REFUSED = [
    (
        ["generate", "--num-beam-groups", "4", "Hi"],
        "--num-beam-groups: there are no groups of beams; leave it out, and give --num-beams with a --temperature",
    ),
    (["generate", "--n=2", "Hi"], "--n: a call writes one text; call again for another, with"),
    (["generate", "--max-tokens", "4", "Hi"], "--max-tokens: unknown flag (did you mean '--max-new-tokens'?)"),
    (["generate", "--zzz", "Hi"], "--zzz: unknown flag"),
    (["generate", "-n", "4", "Hi"], "-n: unknown flag"),
    (["generate", "--model", "tiny", "Hi"], "--model: the pair is the model; give --pair NAME"),
    (["generate", "--max-time", "3", "Hi"], "--max-time: give --timeout, in seconds"),
    (
        ["generate", "--mode", "edge", "Write", "a", "haiku"],
        "prompt: it is one argument, and 3 are given; quote the prompt: 'Write a haiku'",
    ),
    (
        ["generate", "--", "a", "--b"],
        "prompt: it is one argument, and 2 are given; quote the prompt: 'a --b'",
    ),
    (["serve", "--port", "80"], "--port: give --listen HOST:PORT"),
    (["serve", "--temperature", "1"], "--temperature: clients send it with each request; leave it out"),
    (["models", "list", "tiny", "default"], "unrecognized arguments: default"),
    (["models", "list", "--pear", "tiny"], "--pear: unknown flag (did you mean '--pair'?)"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_the_message_names_what_is_wrong_alone(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    last = capsys.readouterr().err.rstrip("\n").rpartition(": error: ")[2]
    assert last.startswith(message)
    assert "Hi" not in last


def test_each_unknown_flag_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--stream", "--num-beam-groups", "2", "--stream", "Hi"])
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert lines[0].endswith("error: --stream: text is printed as it is written; leave it out")
    assert lines[1].startswith("--num-beam-groups: ")


def test_the_other_programs_suggest_flags_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cloud_main(["serve", "--lisen", "127.0.0.1:1"])
    assert "--lisen: unknown flag (did you mean '--listen'?)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        link_main(["run", "--rtt-ms", "5", "--to", "127.0.0.1:1", "--lisen", "127.0.0.1:2"])
    assert "--lisen: unknown flag (did you mean '--listen'?)" in capsys.readouterr().err


def test_an_argument_is_repeated_at_a_readable_length(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["generate", "word", *["word"] * 4096], ["generate", f"--{'z' * 4096}"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert len(capsys.readouterr().err.rpartition(": error: ")[2]) < 250


@pytest.mark.parametrize("instead", [instead_of_flag, instead_of_service_flag])
def test_every_sentence_can_be_said_of_a_flag(instead: object) -> None:
    assert callable(instead)
    for name in NAMES:
        sentence = instead(f"--{name.replace('_', '-')}")
        assert sentence is not None
        assert "{" not in sentence
    assert instead("--temprature") is None
    assert instead("-n") is None
