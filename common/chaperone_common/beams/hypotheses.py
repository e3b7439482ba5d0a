"""Finished beams, ranked as Hugging Face ranks them: by log-probability over a power of the length. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Hypothesis(NamedTuple):
    """A finished text."""

    token_ids: tuple[int, ...]  # new tokens, the one that ended the text included
    logprob: float  # sum of the large model's own log-probabilities, natural
    finish_reason: str  # as in `GenerationStats`

    def score(self, length_penalty: float) -> float:
        """Return logprob / length ** length_penalty; a larger penalty favours longer texts."""
        return _score(self.logprob, len(self.token_ids), length_penalty)


@dataclass(slots=True)
class Hypotheses:
    """The best finished texts so far; best first, and the earlier first among equals."""

    most: int  # texts that are wanted
    length_penalty: float = 1.0
    early_stopping: bool = False  # True: end as soon as there are `most` finished texts
    spare: int = 0  # further texts that are kept, until it is known whether any of the best is to be forgotten
    best: list[Hypothesis] = field(default_factory=list)

    def add(self, hypothesis: Hypothesis) -> None:
        """Keep a finished text if it is among the best. A text that is there already is not kept twice."""
        if any(kept.token_ids == hypothesis.token_ids for kept in self.best):
            return
        self.best.append(hypothesis)
        self.best.sort(key=lambda kept: -kept.score(self.length_penalty))
        del self.best[self.most + self.spare :]

    def forget(self, ranks: Collection[int]) -> None:
        """Remove some texts, by rank from 0, and then all but `most`. Raises ValueError for a rank that none has."""
        if unknown := [rank for rank in ranks if not 0 <= rank < len(self.best)]:
            raise ValueError(f"copies: {unknown[0]} is none of the {len(self.best)} finished texts")
        self.best = [text for rank, text in enumerate(self.best) if rank not in ranks][: self.most]

    def copy(self) -> Hypotheses:
        """Return the same texts, to which others may be added."""
        return replace(self, best=[*self.best])

    def are_final(self, best_running: float | None, length: int) -> bool:
        """Return whether no running beam can be among the best any more.

        `best_running` is the largest log-probability of a running beam, `length` its number of new tokens; None: no
        beam runs. As in Hugging Face's `early_stopping=False`, a running beam is judged by its present score. With a
        positive length penalty a longer text could still do better, so this is a heuristic.
        """
        if best_running is None:
            return True
        if len(self.best) < self.most:
            return False
        if self.early_stopping:
            return True
        reachable = _score(best_running, length, self.length_penalty)
        return reachable <= self.best[self.most - 1].score(self.length_penalty)


def _score(logprob: float, length: int, length_penalty: float) -> float:
    return logprob / float(max(1, length) ** length_penalty)
