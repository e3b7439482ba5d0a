"""No file of the tree names the machine that it was written on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MACHINE_PATH = re.compile(
    rb"(?<![\w.~$}/-])/(?:root|home/[a-z]+|Users/\w+)/|" + re.escape(os.fsencode(REPOSITORY)) + rb"\b",
)


def test_no_path_of_a_machine_in_the_tree() -> None:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.check_output(listing, cwd=REPOSITORY, text=True).split("\0")
    texts = ((name, REPOSITORY / name) for name in names if name and not name.startswith("docker/"))
    found = [
        f"{name}:{number}"
        for name, path in texts
        if path.is_file() and b"\0" not in (content := path.read_bytes())
        for number, line in enumerate(content.splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_a_machine_path_would_be_found() -> None:
    for folder in ("root", "home/alice", "Users/Alice"):
        assert MACHINE_PATH.search(f"see /{folder}/x".encode())
    assert MACHINE_PATH.search(os.fsencode(REPOSITORY / "README.md"))
    for harmless in ("https://example.org", "~", "src"):
        for folder in ("root", "home/alice"):
            assert not MACHINE_PATH.search(f"see {harmless}/{folder}/x".encode())
