"""`chaperone` with standard streams that are closed, full, of another encoding, or a terminal."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from chaperone_common.command.console import visible
from tests.support.processes.commands import ROOT, environment, on_a_terminal
from tests.support.waiting import START_S

TINY = "generate --pair tiny --mode edge --max-new-tokens 5"
UNWRITTEN = "chaperone: standard output: "
FULL = f"{UNWRITTEN}cannot be written: No space left on device\n"
CLOSED = f"{UNWRITTEN}it is closed\n"


def shell(command: str, **extra: str) -> tuple[int, str, str]:
    """Run `chaperone` or `chaperone-link` with redirections."""
    python = shlex.quote(sys.executable)
    script = command.replace("chaperone-link", f"{python} -m link_emulator.command")
    script = script.replace("chaperone", f"{python} -m edge_client.apps.cli.main")
    ended = subprocess.run(
        ["/bin/bash", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(**extra),
        cwd=ROOT,
        timeout=START_S,
        check=False,
    )
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


@pytest.fixture(scope="module")
def text(tiny_pair: Path) -> str:
    """Return the text after the prompt `hi`."""
    code, out, err = shell(f"chaperone {TINY} hi")
    assert (code, err) == (0, "")
    return out


ENDS: list[tuple[str, int, str | None, str]] = [  # command, exit code, output (None: the text), complaint
    (f"chaperone {TINY} hi <&-", 0, None, ""),
    (f"chaperone {TINY} hi 2>&-", 0, None, ""),
    (f"chaperone {TINY} hi 2>/dev/full", 0, None, ""),
    (f"chaperone {TINY} --explain hi 2>/dev/full", 0, None, ""),
    (f"chaperone {TINY} --explain hi 2>&-", 0, None, ""),
    (f"chaperone {TINY} hi >/dev/full", 1, "", FULL),
    (f"chaperone {TINY} hi >&-", 1, "", CLOSED),
    (f"chaperone {TINY} --json hi >/dev/full", 1, "", FULL),
    (f"chaperone {TINY} --json hi >&-", 1, "", CLOSED),
    (f"chaperone {TINY} hi >&- 2>&-", 1, "", ""),
    (f"chaperone {TINY} hi <&- >&- 2>&-", 1, "", ""),
    (f"chaperone {TINY} hi >/dev/full 2>/dev/full", 1, "", ""),
    (f"chaperone {TINY} <&-", 2, "", "chaperone: prompt: standard input is closed; give a prompt\n"),
    (f"chaperone {TINY} '' 2>&-", 2, "", ""),
    (f"chaperone {TINY} '' 2>/dev/full", 2, "", ""),
    ("chaperone --nonsense 2>/dev/full", 2, "", ""),
    ("chaperone --nonsense 2>&-", 2, "", ""),
    ("chaperone --version >/dev/full", 1, "", FULL),
    ("chaperone generate --help >/dev/full", 1, "", FULL),
    ("chaperone generate --help >&-", 1, "", CLOSED),
    ("chaperone-link profiles >/dev/full", 1, "", FULL.replace("chaperone", "chaperone-link")),
    ("chaperone-link profiles >&-", 1, "", CLOSED.replace("chaperone", "chaperone-link")),
    ("chaperone-link run --rtt-ms 5 --to 127.0.0.1:1 >/dev/full", 1, "", FULL.replace("chaperone", "chaperone-link")),
    ("chaperone-link run --rtt-ms 5 --to 127.0.0.1:1 >&-", 1, "", CLOSED.replace("chaperone", "chaperone-link")),
    ("chaperone generate --help | head -c 0; exit ${PIPESTATUS[0]}", 0, "", ""),
    (f"chaperone {TINY} --json hi | true; exit ${{PIPESTATUS[0]}}", 0, "", ""),
]


@pytest.mark.parametrize(("command", "code", "output", "complaint"), ENDS, ids=[row[0] for row in ENDS])
def test_the_exit_code_is_right_for_every_kind_of_stream(
    text: str, command: str, code: int, output: str | None, complaint: str
) -> None:
    assert shell(command, PYTHONUNBUFFERED="") == (code, text if output is None else output, complaint)


def test_no_opened_file_takes_the_descriptor_of_a_closed_stream(text: str, tmp_path: Path) -> None:
    """Otherwise messages of libraries on standard error would go into the results."""
    (tmp_path / "in.jsonl").write_text('{"id": 1, "prompt": "hi"}\n{"id": 2}\n')
    files = f"--prompts {tmp_path}/in.jsonl --out {tmp_path}/out.jsonl"
    assert shell(f"chaperone {TINY} --explain {files} <&- >&- 2>&-")[0] == 1
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["text"] == text.removesuffix("\n")
    assert "error" in second


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_another_encoding_loses_no_result(text: str, locale: dict[str, str], tmp_path: Path) -> None:
    assert "\ufffd" in text, "no such character in these encodings"
    assert shell(f"chaperone {TINY} hi", **locale) == (0, text.replace("\ufffd", "?"), "")
    code, out, _ = shell(f"chaperone {TINY} --json hi", **locale)
    assert (code, json.loads(out)["text"] + "\n") == (0, text)
    (tmp_path / "in.jsonl").write_text('{"id": "\\u4f60", "prompt": "hi"}\n')
    for target in ("-", f"{tmp_path}/out.jsonl"):
        code, out, _ = shell(f"chaperone {TINY} --prompts {tmp_path}/in.jsonl --out {target}", **locale)
        written = out if target == "-" else (tmp_path / "out.jsonl").read_text(encoding="utf-8")
        assert (code, json.loads(written)["text"] + "\n") == (0, text)


# --- Terminals -------------------------------------------------------------------------------------------------------


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


WILD = [*TINY.split()[:-1], "150", "--temperature", "1.2", "--seed", "125"]


def test_control_characters_of_a_model_are_escaped_on_a_terminal(tiny_pair: Path) -> None:
    code, raw, _ = shell(f"chaperone {shlex.join(WILD)} hi")
    assert code == 0
    assert visible(raw) != raw, "choose another seed"
    code, shown = on_a_terminal(*WILD, "hi")
    text, _, last = without_colours(shown).rpartition("\n[")
    assert (code, text + "\n") == (0, visible(raw))
    assert "\ncolours: draft\n" in f"\n{last}"
    code, plain = on_a_terminal(*WILD, "hi", TERM="dumb")
    assert (code, plain.rpartition("\n[")[0] + "\n") == (0, visible(raw))
    assert "colours:" not in plain
    code, result = on_a_terminal(*WILD, "--json", "hi")
    assert json.loads(result)["text"] + "\n" == raw
    assert visible(result) == result


def test_explanations_do_not_break_into_the_text(text: str) -> None:
    code, shown = on_a_terminal(*TINY.split(), "--explain", "hi")
    lines = without_colours(shown).splitlines()
    assert code == 0
    assert text.removesuffix("\n") in lines
    explained = [json.loads(line) for line in lines if line.startswith('{"')]
    assert len(explained) >= 5


def test_a_batch_shows_its_progress(tiny_pair: Path, tmp_path: Path) -> None:
    lines = "".join(f'{{"id": {number}, "prompt": "hi"}}\n' for number in range(3)) + '{"id": "\x7f"}\n'
    (tmp_path / "in.jsonl").write_text(lines)
    files = ("--prompts", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    code, shown = on_a_terminal(*TINY.split(), *files)
    *progress, last = shown.removesuffix("\n").split("\r\x1b[K")
    assert code == 1
    assert re.fullmatch(r"\[4 of 4 lines, 1 failed; 15 tokens, [\d.]+ tokens/s\]", last)
    assert any(re.fullmatch(r"\[\d of 4 lines, 0 failed; \d+ tokens, [\d.]+ tokens/s\]", line) for line in progress)
    assert "chaperone: line 4: prompt, messages: give exactly one of them\n" in progress
    code, shown = on_a_terminal(*TINY.split(), *files, TERM="dumb")
    assert shown.splitlines()[-1].startswith("[4 lines, 3 of them kept, 1 failed; 0 tokens, ")
    assert "\r" not in shown


def test_control_characters_in_error_messages_are_escaped(tiny_pair: Path) -> None:
    code, shown = on_a_terminal("generate", "--pair", "tiny", "--\x1b[31mred")
    assert code == 2
    assert "--^[[31mred: unknown flag" in shown
