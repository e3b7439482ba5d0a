"""Answers to many prompts, a file for each batch, so that an interrupted run goes on where it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaperone_common.errors import ConfigError
from training.answers.answer import refuse_others, write_answers
from training.answers.batches import Batch, batches_of
from training.answers.sampling import Sampling
from training.answers.writing import Writer
from training.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Asking:
    """The settings of a run that asks prompts."""

    samplings: Sequence[Sampling]  # the batches take turns
    max_new_tokens: int
    batch: int  # texts at once
    seed: int


def answer_all(
    writer: Writer,
    prompts: Sequence[Prompt],
    asking: Asking,
    folder: Path,
    *,
    max_seconds: float = float("inf"),
    say: Callable[[str], None],
) -> bool:
    """Write the files that are missing in `folder`; return whether all are there.

    No further batch is begun after `max_seconds`. Raises ConfigError if the folder has answers to other prompts or by
    other settings, which a reader would mix, and for a prompt that leaves no room for its answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {prompt.id: len(writer.prompt_ids(prompt)) for prompt in prompts}
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[longest] + asking.max_new_tokens > writer.context_tokens:
        raise ConfigError(
            f"prompt {longest!r}: {lengths[longest]} tokens, and {asking.max_new_tokens} of an answer, are more than "
            f"the {writer.context_tokens} that the large model reads; shorten the prompt, or lower --max-new-tokens"
        )
    batches = batches_of(
        prompts,
        lambda prompt: lengths[prompt.id],
        size=asking.batch,
        samplings=asking.samplings,
        seed=asking.seed,
    )
    settings = writer.settings | {"max_new_tokens": asking.max_new_tokens}
    refuse_others(folder, [batch.file_name(settings) for batch in batches])
    missing = [batch for batch in batches if not (folder / batch.file_name(settings)).exists()]
    ends_s = time.monotonic() + max_seconds
    for done, batch in enumerate(missing):
        if time.monotonic() > ends_s:
            say(f"{len(missing) - done} of {len(batches)} batches are left; the same command goes on")
            return False
        began_s = time.monotonic()
        answers = writer.write(batch.prompts, batch.sampling, asking.max_new_tokens)
        write_answers(folder / batch.file_name(settings), answers)
        tokens = sum(len(answer.tokens) for answer in answers)
        say(_said(batch, len(batches), tokens, time.monotonic() - began_s))
    return True


def _said(batch: Batch, batches: int, tokens: int, seconds: float) -> str:
    return f"batch {batch.number} of {batches}: {len(batch.prompts)} answers, {tokens} tokens in {seconds:.0f} s"
