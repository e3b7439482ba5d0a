"""The Makefile has one rule for each of its commands.

`make` runs a phony target without a rule, and succeeds.
"""

from __future__ import annotations

import re
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"


def test_every_command_has_one_rule() -> None:
    text = MAKEFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    declared = re.findall(r"^\.PHONY:(.*)$", text, re.MULTILINE)[0].split()
    rules = re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE)
    assert sorted(rules) == sorted(declared)
