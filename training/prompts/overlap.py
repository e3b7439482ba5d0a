"""Near copies of texts on which results are reported. They are kept out of the training data.

Two texts overlap if they share `WORDS` words in a row, or if one of them is shorter than that and its words stand in
the other. Case, punctuation and space do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

WORDS = 8
_WORD = re.compile(r"\w+")


class Reported:
    """The runs of words of all reported texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._runs: set[tuple[str, ...]] = set()
        self._lengths: set[int] = set()  # of the runs; all but WORDS are whole short texts
        for text in texts:
            words = words_of(text)
            self._runs.update(_runs(words, min(WORDS, len(words))))
            if words:
                self._lengths.add(min(WORDS, len(words)))

    def overlaps(self, text: str) -> bool:
        """Return whether a text shares a run of words with a reported one."""
        words = words_of(text)
        return any(run in self._runs for length in self._lengths for run in _runs(words, length))


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case."""
    return tuple(_WORD.findall(text.lower()))


def _runs(words: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    return (words[start : start + length] for start in range(len(words) - length + 1))
