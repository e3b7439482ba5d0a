"""The wording check of `make check` finds what docs/contributing.md forbids."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import wording


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("The cloud tells the device.", "tells"),
        ("def told_by() -> None: ...", "told"),
        ("NOT_TOLD = 1", "TOLD"),
        ("Nothing stands beside it.", "beside"),
        ("It waits in vain.", "in vain"),
        ("at most so many tokens", "so many"),
    ],
)
def test_a_word_with_a_plainer_one_is_found(line: str, word: str) -> None:
    (finding,) = wording.check_words(f"fine\n{line}\n")
    assert finding.line == 2
    assert finding.problem.startswith(f"{word!r}: write ")


@pytest.mark.parametrize("line", ["a storyteller", "shear", "amendment", "It is better to keep it."])
def test_words_that_only_contain_one_are_left_alone(line: str) -> None:
    assert [*wording.check_words(line)] == []


def test_code_in_a_page_is_left_alone() -> None:
    assert [*wording.check_words("the key `told` of the result", code=False)] == []


@pytest.mark.parametrize("opening", ["What", "Whether", "How", "Of"])
def test_a_docstring_that_opens_with_a_question_word_is_found(opening: str) -> None:
    source = f'def f() -> None:\n    """{opening} the cloud holds."""\n'
    (finding,) = wording.check_docstrings(source)
    assert finding.line == 2
    assert opening in finding.problem


def test_a_file_is_checked_for_both(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Which tokens were heard."""\n', encoding="utf-8")
    assert len(wording.check_file(path)) == 2


def test_data_and_generated_code_are_skipped() -> None:
    names = {path.relative_to(wording.REPOSITORY).as_posix() for path in wording.tracked_files()}
    assert "README.md" in names
    assert "edge_client/client.py" in names
    assert not {name for name in names if name.startswith(("benchmarks/results/", "common/chaperone_common/pb/"))}
