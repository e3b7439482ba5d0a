"""Stop strings in streamed text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopScanner:
    """Cuts streamed text before the first stop string, and holds back the possible start of one.

    Each character costs the same, whatever the stop strings are.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._automaton = _Automaton(stop)
        self._state = 0
        self._held = ""
        self._met: int | None = None  # where in the held text the first stop string met so far starts
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """True if a stop string was met."""
        return self._stopped

    def push(self, text: str) -> tuple[str, bool]:
        """Take more text; returns the part that is safe to show, and whether a stop string was met.

        Of several stop strings the one that starts first cuts, as in a search of the whole text.
        """
        if self._stopped:
            return "", True
        read = len(self._held)
        self._held += text
        for end, character in enumerate(text, start=read + 1):
            self._state = self._automaton.after(self._state, character)
            met = self._automaton.met[self._state]
            if met and (self._met is None or end - met < self._met):
                self._met = end - met
            # A longer stop string that started earlier may still be completed.
            if self._met is not None and self._met <= end - self._automaton.depth[self._state]:
                return self._cut(self._met), True
        open_start = len(self._held) - self._automaton.depth[self._state]
        safe, self._held = self._held[:open_start], self._held[open_start:]
        if self._met is not None:
            self._met -= open_start
        return safe, False

    def flush(self) -> str:
        """Return the text held back, when no more comes; it may end at a stop string, see `stopped`."""
        if self._met is not None:
            return self._cut(self._met)
        rest, self._held, self._state = self._held, "", 0
        return rest

    def _cut(self, end: int) -> str:
        rest, self._held, self._met, self._stopped = self._held[:end], "", None, True
        return rest


class _Automaton:
    """Aho and Corasick's: a state is the longest end of the text that some stop string starts with."""

    def __init__(self, words: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the state of the next shorter end
        self.depth = [0]  # characters of that end
        self.met = [0]  # characters of the longest stop string that ends here, or 0
        for word in words:
            self._add(word)
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, child in self._next[state].items():
                self._shorter[child] = self.after(self._shorter[state], character)
                waiting.append(child)
            self.met[state] = self.met[state] or self.met[self._shorter[state]]

    def after(self, state: int, character: str) -> int:
        """Return the state after one more character."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def _add(self, word: str) -> None:
        state = 0
        for character in word:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.depth.append(self.depth[state] + 1)
                self.met.append(0)
            state = self._next[state][character]
        self.met[state] = self.depth[state]
