"""The build context: the files that .dockerignore lets through to the steps of a Dockerfile."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pathspec import PathSpec, Pattern

from tests.support.processes.commands import ROOT


def context_files() -> list[str]:
    """Return the files of this checkout that reach a build, apart from those that git ignores."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")
    ignored = _patterns()
    return [name for name in names if name and (ROOT / name).is_file() and not ignored.match_file(name)]


def passes(name: str) -> bool:
    """Return whether .dockerignore lets a file through."""
    return not _patterns().match_file(name)


def copy_context(folder: Path) -> None:
    """Copy the files of the context into a folder."""
    for name in context_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)


def _patterns() -> PathSpec[Pattern]:
    """Return the patterns of .dockerignore in the words of .gitignore.

    Those of .dockerignore begin at the root, and hold for all that lies in a folder. The last one that matches decides.
    """
    lines = [line.strip() for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()]
    patterns = []
    for line in lines:
        if line and not line.startswith("#"):
            exception, path = ("!", line[1:]) if line.startswith("!") else ("", line)
            rooted = exception + (path if path.startswith("**") else f"/{path}")
            patterns += [rooted, f"{rooted}/**"]
    return PathSpec.from_lines("gitignore", patterns)
