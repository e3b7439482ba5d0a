"""A device next to attackers of the tiny pair's service: real processes, and each kind of attack."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attacks.kinds import ATTACKS
from benchmarks.attacks.run import add_arguments, run
from chaperone_common.errors import ConfigError
from tests.support.processes.commands import ROOT, environment

REFUSED = {
    "malformed": "OUT_OF_RANGE",
    "bombs": "OUT_OF_RANGE",
    "strangers": "UNAUTHENTICATED",
    "guesses": "UNAUTHENTICATED",
    "over-quota": "RESOURCE_EXHAUSTED",
}


def attack(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "one", "class": "general", "prompt": "write a letter"}), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks", "attacks", "--pair", "tiny", "--prompts", str(prompts)]
    return subprocess.run(
        [*command, *options], env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=150
    )


@pytest.fixture(scope="module")
def result(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("attacks")
    out = folder / "a.json"
    done = attack(folder, "--max-new-tokens", "8", "--malformed", "60", "--settling-s", "0", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_each_attack_leaves_the_text_and_is_measured(result: Any) -> None:
    assert list(result["summary"]) == list(ATTACKS)
    for row in result["summary"].values():
        assert row["equal_texts"] == row["texts"] > 0
        assert row["least_ratio"] > 0
        assert 0.5 < row["rss_ratio"] < 2.0


def test_attacks_are_refused(result: Any) -> None:
    for kind, status in REFUSED.items():
        endings = result["summary"][kind]["attacker_endings"]
        assert endings.get(status, 0) > 0, endings
        assert set(endings) <= {status, "RESOURCE_EXHAUSTED", "late", "reset"}, endings
    assert result["summary"]["malformed"]["attacker_streams"] >= 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kinds", "nuke"), "--kinds: nuke is none; choose from malformed, "),
        (("--first", "0"), "--first: 0; at least 1"),
        (("--malformed", "-1"), "--malformed: -1; at least 1"),
    ],
)
def test_options_are_checked(options: tuple[str, ...], message: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigError) as raised:
        run(parser.parse_args(options))
    assert raised.value.message.startswith(message)
