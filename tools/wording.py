"""Check the wording of code and documentation: `python -m tools.wording [PATH...]`.

Two rules of docs/contributing.md can be checked by a machine: words that have a plainer one, and docstrings that open
with a question word. The tool prints one line per finding and exits with 1 if it found any.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]

# Each word, as a regular expression, and what to write in its place.
PLAINER = {
    r"tells?|told|telling|teller": "report, return, say, show",
    r"hears?|heard|hearing": "receive, listen, notice",
    r"besides?": "next to, apart from, with",
    r"behind": "after, below, late",
    r"meanwhile": "during this time, until then",
    r"anew": "again",
    r"so many|so much": "up to n, that many, n",
    r"seldom": "rarely",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"in vain": "without a result",
    r"likewise": "in the same way, too",
    r"be it": "whether ... or",
    r"whoever|whomever": "the caller, the client, name it",
    r"comes? along|came along": "is packaged, is included",
    r"of its own accord": "by itself",
    r"gone on with": "continued",
    r"nought|naught": "nothing, 0",
    r"hither|thither|whence|thereof|therein|thereby|herein|whereby|wherein": "name the thing",
}
# Not prose of this project: data, generated code, text that a model is trained on.
SKIPPED = (
    "LICENSE",
    "benchmarks/explored/",
    "benchmarks/prompt_sets/",
    "benchmarks/results/",
    "cloud_supervisor/export/tiny_corpus.py",
    "common/chaperone_common/pb/",
    "constraints.txt",
    "proto/noise_vectors.json",
    "docs/contributing.md",  # quotes them
    "tests/architecture/test_wording.py",
    "tests/data/",
    "tools/wording.py",
)
SUFFIXES = {"", ".ini", ".md", ".proto", ".py", ".sh", ".toml", ".yaml", ".yml"}

# Identifiers count, too: `told_by` and `NOT_TOLD` hold the word.
_BANNED = re.compile(
    "|".join(rf"(?<![a-z])(?P<w{index}>{words})(?![a-z])" for index, words in enumerate(PLAINER)), re.IGNORECASE
)
_CODE = re.compile(r"`[^`\n]*`")
_QUESTION_WORDS = {"How", "Of", "What", "Whatever", "When", "Where", "Whether", "Which", "Who", "Whose"}


class Finding(NamedTuple):
    """One place to reword."""

    line: int
    problem: str


def check_words(text: str, *, code: bool = True) -> Iterator[Finding]:
    """Yield each word that has a plainer one; without `code`, text in backticks is left alone."""
    for number, line in enumerate(text.splitlines(), start=1):
        for found in _BANNED.finditer(line if code else _CODE.sub("", line)):
            index = int(str(found.lastgroup).removeprefix("w"))
            advice = list(PLAINER.values())[index]
            yield Finding(number, f"{found[0]!r}: write {advice}")


def check_docstrings(source: str) -> Iterator[Finding]:
    """Yield each docstring of Python source that opens with a question word."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if docstring and (opening := docstring.split(maxsplit=1)[0].rstrip(",:")) in _QUESTION_WORDS:
            line = node.body[0].lineno
            yield Finding(line, f"docstring opens with {opening!r}: begin with a verb (Return, Raise) or a noun")


def check_file(path: Path) -> list[Finding]:
    """Return the findings of one file, in the order of its lines."""
    text = path.read_text(encoding="utf-8")
    is_python = path.suffix == ".py"
    findings = [*check_words(text, code=path.suffix != ".md")]
    if is_python:
        findings += check_docstrings(text)
    return sorted(findings)


def tracked_files() -> Iterator[Path]:
    """Yield the files of the repository that hold its own prose."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.check_output(listing, cwd=REPOSITORY, text=True).split("\0")):
        path = REPOSITORY / name
        if path.suffix in SUFFIXES and path.is_file() and not _is_skipped(name):
            yield path


def _is_skipped(name: str) -> bool:
    return any(name.startswith(skipped) if skipped.endswith("/") else name == skipped for skipped in SKIPPED)


def _files_below(paths: Iterable[Path]) -> Iterator[Path]:
    wanted = [path.resolve() for path in paths]
    for file in tracked_files():
        if any(file == path or file.is_relative_to(path) for path in wanted):
            yield file


def main(argv: Sequence[str] | None = None) -> int:
    """Check the named files or folders, or the whole repository; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.wording", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    args = parser.parse_args(argv)
    found = False
    for path in sorted(_files_below(args.paths) if args.paths else tracked_files()):
        for finding in check_file(path):
            found = True
            print(f"{path.relative_to(REPOSITORY)}:{finding.line}: {finding.problem}")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
