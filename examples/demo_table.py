"""The table of `make demo`: a row for each mode, and a line for each column that explains it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from chaperone_common.types import Mode
from edge_client import Audited, Generation

WIDTH = 100  # characters of a line
PROVISIONAL_S = 0.05  # provisional text that is shown less than this before final text is not worth a number


@dataclass(frozen=True, slots=True)
class Answer:
    """A generation, with the audits of its skipped tokens. An index counts from the first token after the prompt."""

    generation: Generation
    # Indices of the tokens that the cloud read after they were final.
    audited: frozenset[int] = frozenset()
    # Audited indices where the cloud would have chosen another token.
    deviations: frozenset[int] = frozenset()


def answer_of(generation: Generation, audits: Iterable[Audited]) -> Answer:
    """Return a generation with the audits among its events."""
    first = len(generation.prompt_token_ids)
    audited, deviations = set[int](), set[int]()
    for audit in audits:
        audited.update(range(audit.start - first, audit.end - first))
        deviations.update(position - first for position in audit.deviations)
    return Answer(generation, frozenset(audited), frozenset(deviations))


Answers = Mapping[Mode, Answer]


class Reason(StrEnum):
    """The reason why a text differs from the text of mode `cloud`, at the first token that differs."""

    DEVIATION = "deviation"
    ROUNDING = "rounding"
    UNCHECKED = "unchecked"
    LENGTH = "length"


REASONS = {
    Reason.DEVIATION: "The gate let tokens pass without asking, and audits found that the cloud would have chosen "
    "others after the same text. The number counts all of them.",
    Reason.ROUNDING: "The cloud chose both tokens after the same text. It rounds differently if it reads more tokens "
    "at once, and the two were almost equally good.",
    Reason.UNCHECKED: "The device wrote the token, and the cloud has not read it.",
    Reason.LENGTH: "One text continues where the other ends.",
}


class Difference(NamedTuple):
    """The first token of a text that is not the token of another text."""

    token_index: int
    reason: Reason


def difference(answer: Answer, reference: Answer) -> Difference | None:
    """Return the first difference between a text and that of mode `cloud`; None if they are equal.

    Up to there both texts are the same, so the cloud's choice at that token is known if the cloud read it.
    """
    own, other = answer.generation.token_ids, reference.generation.token_ids
    if own == other:
        return None
    shared = min(len(own), len(other))
    index = next((index for index in range(shared) if own[index] != other[index]), shared)
    if index == shared:
        return Difference(index, Reason.LENGTH)
    if index in answer.deviations:
        return Difference(index, Reason.DEVIATION)
    if answer.generation.origins[index].judged or index in answer.audited:
        return Difference(index, Reason.ROUNDING)
    return Difference(index, Reason.UNCHECKED)


def table(answers: Answers) -> list[str]:
    """Return the lines of the table for one prompt."""
    head = ("mode", "first word", "last word", "tokens", "requests", "cloud compute", "same text as cloud")
    rows = [head, *(_row(mode, answer, answers[Mode.CLOUD]) for mode, answer in answers.items())]
    return [_line(row) for row in rows]


def explanation(prompts: Sequence[Answers]) -> list[str]:
    """Return the lines that explain the columns, and the reasons that occur in the tables of these prompts."""
    found = [difference(answer, answers[Mode.CLOUD]) for answers in prompts for answer in answers.values()]
    reasons = {entry.reason for entry in found if entry is not None}
    columns = {
        "first word": "Time from the request to the first final text. In brackets: to the first provisional text, "
        "which the cloud may still replace.",
        "last word": "Time from the request to the last token. It includes reading the prompt.",
        "tokens": "Length of the answer.",
        "requests": "Requests to the cloud for a verdict or for text. The device waits for some, and drafts during "
        "the others.",
        "cloud compute": "Time that the large model computed: the prompt, the requests, and the last audit.",
        "same text": "Compared with mode `cloud`, token by token. If not: the first token that differs, and the "
        "reason.",
        **{f"  {reason}": REASONS[reason] for reason in Reason if reason in reasons},
    }
    return [line for name, text in columns.items() for line in _explained(name, text)]


def prompt_json(prompt: str, answers: Answers) -> dict[str, Any]:
    """Return one prompt with its generations, and the cells of its table, by mode."""
    return {
        "prompt": prompt,
        "generations": {str(mode): answer.generation.to_json() for mode, answer in answers.items()},
        "table": {str(mode): _cells_json(answer, answers[Mode.CLOUD]) for mode, answer in answers.items()},
    }


def _row(mode: Mode, answer: Answer, reference: Answer) -> tuple[str, ...]:
    stats = answer.generation.stats
    return (
        str(mode),
        _first_word(_seconds(stats.ttft_committed_ms), _seconds(stats.ttft_ms)),
        _shown(_seconds(stats.total_ms)),
        str(len(answer.generation.token_ids)),
        str(stats.round_trips + stats.hidden_round_trips),
        _shown(_seconds(stats.cloud_compute_ms)),
        "it is the cloud's" if answer is reference else _same(answer, reference),
    )


def _same(answer: Answer, reference: Answer) -> str:
    found = difference(answer, reference)
    if found is None:
        return "yes"
    reason = str(found.reason)
    if found.reason is Reason.DEVIATION:
        count = len(answer.deviations)
        reason = f"{count} {reason}{'s' if count > 1 else ''}"
    return f"no, from token {found.token_index + 1}: {reason}"


def _first_word(final_s: float | None, shown_s: float | None) -> str:
    """Return the time to the first final text, and to provisional text if that was shown earlier."""
    if final_s is None or shown_s is None or final_s - shown_s < PROVISIONAL_S:
        return _shown(final_s)
    return f"({shown_s:.2f}) {_shown(final_s)}"


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _shown(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def _line(cells: Sequence[str]) -> str:
    mode, first, last, tokens, requests, compute, same = cells
    return f"{mode:6}{first:>14}{last:>11}{tokens:>8}{requests:>10}{compute:>15}  {same}"


def _explained(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{name:15}", subsequent_indent=" " * 15)


def _cells_json(answer: Answer, reference: Answer) -> dict[str, Any]:
    stats = answer.generation.stats
    found = difference(answer, reference)
    return {
        "first_provisional_s": _seconds(stats.ttft_ms),
        "first_word_s": _seconds(stats.ttft_committed_ms),
        "last_word_s": _seconds(stats.total_ms),
        "tokens": len(answer.generation.token_ids),
        "requests": stats.round_trips + stats.hidden_round_trips,
        "cloud_compute_s": _seconds(stats.cloud_compute_ms),
        "equals_cloud": found is None,
        "first_difference": None if found is None else {"index": found.token_index, "reason": str(found.reason)},
        "deviations": sorted(answer.deviations),
    }
