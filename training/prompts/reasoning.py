"""Tasks of reasoning-gym, from a seed apart from the one that results are reported on."""

from __future__ import annotations

from collections.abc import Container
from itertools import cycle, islice

from benchmarks.quality.task_suites import REASONING, REASONING_SEED
from chaperone_common.errors import ConfigError
from training.prompt import Prompt
from training.prompts.overlap import words_of

_ENDINGS = (
    "\n\nThink step by step, then give the answer alone on the last line, after `Answer:`.",
    "\n\nShow how you get there.",
    "",
)


def tasks(count: int, seed: int, without: Container[tuple[str, ...]]) -> list[Prompt]:
    """Return up to `count` tasks; the kinds take turns. `without` are words of tasks that are left out.

    Raises ConfigError for the seed of reported tasks, or if reasoning-gym is missing.
    """
    if seed == REASONING_SEED:
        raise ConfigError(f"--seed: {seed} is the seed of reported tasks; take another one")
    if count == 0:
        return []
    try:
        import reasoning_gym  # the import takes seconds
    except ImportError as error:
        raise ConfigError(f"--reasoning needs {error.name}; install chaperone-llm[dev], or ask for 0") from None
    each = -(-count // len(REASONING))
    datasets = {
        name: reasoning_gym.create_dataset(name, size=each, seed=seed, **sizes) for name, sizes in REASONING.items()
    }
    questions = (
        (f"reasoning/{name}/{index}", dataset[index]["question"])
        for index in range(each)
        for name, dataset in datasets.items()
    )
    kept = ((name, question) for name, question in questions if words_of(question) not in without)
    return [
        Prompt(name, "reasoning", question + ending)
        for (name, question), ending in zip(islice(kept, count), cycle(_ENDINGS), strict=False)
    ]
