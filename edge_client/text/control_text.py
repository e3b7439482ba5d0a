"""Finds what in a user's strings could be read as a control token, and marks it.

A control token that the template writes consists of the template's characters only. So it is enough to put one
character of a private sort into everything of a user that could be the text of a control token or a part of it: what is
still a control token in the rendered prompt is the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain

# Unicode's noncharacters, and private planes where those do not suffice.
_PRIVATE = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class ControlText:
    """The texts of a model's control tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted({text for text in texts if text})
        self._longest = max(map(len, self._texts), default=0)
        self._pattern = re.compile("|".join(map(re.escape, self._texts))) if self._texts else None
        self._starts = {text[:end] for text in self._texts for end in range(1, len(text))}
        self._ends = {text[start:] for text in self._texts for start in range(1, len(text))}

    def places(self, text: str, *, parts: bool) -> set[int]:
        """Return the characters to mark: one of each control token in a text, and of each part of one at its rim.

        A part is found at the rim as it is and as trimming leaves it. A part of letters only is left as it is: a
        template that puts a word between brackets makes a control token of it on purpose.
        """
        places = set()
        if self._pattern is not None and self._pattern.search(text):
            for control in self._texts:
                places |= {start + _index_to_mark(control) for start in _starts(text, control)}
        if parts:
            for start, end in {(0, len(text)), _trimmed(text)}:
                places |= self._rim(text, start, end)
        return places

    def _rim(self, text: str, first: int, last: int) -> set[int]:
        spans = [(first, last)] if last - first < self._longest and self._within(text[first:last]) else []
        for size in range(1, min(self._longest, last - first + 1)):
            if text[last - size : last] in self._starts:
                spans.append((last - size, last))
            if text[first : first + size] in self._ends:
                spans.append((first, first + size))
        return {start + _index_to_mark(text[start:end]) for start, end in spans if not _is_word(text[start:end])}

    def _within(self, part: str) -> bool:
        return bool(part) and any(part in text for text in self._texts)


class Marks:
    """Private characters in place of those of some texts, and the way back."""

    def __init__(self, rendered: str) -> None:
        """No character of the rendered prompt is used as a mark."""
        self._free = (mark for mark in map(chr, chain(*_PRIVATE)) if mark not in rendered)
        self._mark_of: dict[str, str] = {}

    @property
    def characters(self) -> dict[int, str]:
        """The original character of each mark, for `str.translate`."""
        return {ord(mark): character for character, mark in self._mark_of.items()}

    def put(self, places_of: Callable[[str], Collection[int]]) -> Callable[[str], str]:
        """Return a function that marks a text at its places."""

        def marked(text: str) -> str:
            places = places_of(text)
            if not places:
                return text
            characters = list(text)
            for place in places:
                characters[place] = self._mark(characters[place])
            return "".join(characters)

        return marked

    def taken_out(self, text: str) -> str:
        """Return a text as it is without marks."""
        return text.translate(self.characters)

    def _mark(self, character: str) -> str:
        if character not in self._mark_of:
            self._mark_of[character] = next(self._free)
        return self._mark_of[character]


def _index_to_mark(text: str) -> int:
    """Return the index of the character to mark: if possible none that templates trim, escape or join to a word."""
    harmless = (index for index, character in enumerate(text) if not _is_word(character) and character not in ' "\\')
    plain = (index for index, character in enumerate(text) if not character.isspace())
    return next(chain((index for index in harmless if text[index].isprintable()), plain), 0)


def _is_word(text: str) -> bool:
    return text.replace("_", "a").isalnum()


def _starts(text: str, part: str) -> Iterator[int]:
    start = text.find(part)
    while start >= 0:
        yield start
        start = text.find(part, start + 1)


def _trimmed(text: str) -> tuple[int, int]:
    start = len(text) - len(text.lstrip())
    return start, max(start, len(text.rstrip()))
