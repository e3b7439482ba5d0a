"""General questions, which the large model makes up itself: for each topic and form it writes some, one a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from training.prompt import Prompt
from training.prompts.overlap import words_of

TOPICS = Path(__file__).parent / "topics.txt"
FORMS = (
    "questions that a curious person might ask about {topic}",
    "requests for a short explanation about {topic}, each for another kind of reader",
    "requests to write a short text (an e-mail, a notice, a post or a letter) that has to do with {topic}",
    "requests for practical advice about {topic}",
    "requests to compare two things that have to do with {topic}",
    "requests for a list or a plan that has to do with {topic}",
    "requests for a very short story, a dialogue or a poem that has to do with {topic}",
    "requests to rewrite, shorten or correct a sentence about {topic}; each contains the sentence",
    "questions about {topic} that can be answered in two or three sentences",
    "everyday problems that have to do with {topic}, each in two sentences, with a question at the end",
)
QUESTIONS_EACH = 6
_REQUEST = (
    "Write {count} {form}. They go to an assistant, so write each as its user would. Make them different from one "
    "another and concrete. Write one on each line, numbered, and nothing else."
)
_NUMBERED = re.compile(r"^\s*\**\d+[.):]\**\s+(.*\S)\s*$")
_QUOTES = "\"'“”*"
_LENGTHS = (20, 500)  # characters of a question


def topics() -> list[str]:
    """Return the topics."""
    return TOPICS.read_text(encoding="utf-8").splitlines()


def requests(count: int, seed: int) -> list[str]:
    """Return `count` different messages that ask the large model for questions, in random order."""
    pairs = [(topic, form) for topic in topics() for form in FORMS]
    order = np.random.default_rng(seed).permutation(len(pairs))
    chosen = (pairs[index] for index in order[:count])
    return [_REQUEST.format(count=QUESTIONS_EACH, form=form.format(topic=topic)) for topic, form in chosen]


def questions_in(answer: str) -> Iterator[str]:
    """Yield the numbered lines of an answer that can be questions."""
    for line in answer.splitlines():
        if (found := _NUMBERED.match(line)) is None:
            continue
        text = found[1].strip(_QUOTES + " ")
        if _LENGTHS[0] <= len(text) <= _LENGTHS[1]:
            yield text


def questions(answers: Sequence[str], count: int) -> list[Prompt]:
    """Return up to `count` questions of some answers; each answer gives one in turn, and none is there twice."""
    waiting = [list(questions_in(answer)) for answer in answers]
    prompts: list[Prompt] = []
    seen: set[tuple[str, ...]] = set()
    for place in range(QUESTIONS_EACH):
        for found in waiting:
            words = words_of(found[place]) if place < len(found) else ()
            if words and words not in seen and len(prompts) < count:
                seen.add(words)
                prompts.append(Prompt(f"general/{len(prompts)}", "general", found[place]))
    return prompts
