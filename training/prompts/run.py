"""Make prompts: `python -m training prompts --pair NAME --out P.jsonl`.

Code is taken from functions of installed packages with permissive licences. Reasoning is from reasoning-gym. General
questions are made up by the pair's large model; `--work` keeps what it wrote, so that an interrupted run goes on. Near
copies of the texts that results are reported on, or that gates are calibrated with, are left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from chaperone_common.errors import ConfigError
from training.answers.sampling import Sampling
from training.options import at_least
from training.prompt import Prompt, write_prompts
from training.prompts import functions, questions, reasoning
from training.prompts.overlap import Reported, words_of
from training.prompts.reported import reported_tasks, reported_texts

_SPARE = 1.3  # prompts that are made for each one that is wanted, since some are copies
_ASKED = Sampling(temperature=1.0, top_p=0.95)
_LONGEST_LIST = 320  # tokens of a list of questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pair", default="default", help="its large model makes up the general questions")
    parser.add_argument("--out", type=Path, required=True, help="the file of prompts")
    parser.add_argument("--code", type=at_least(0), default=600, help="prompts of code (default: %(default)s)")
    parser.add_argument("--general", type=at_least(0), default=1000, help="general questions (default: %(default)s)")
    parser.add_argument("--reasoning", type=at_least(0), default=300, help="tasks of reasoning (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("auto", "int8", "bfloat16", "float32"), default="auto", help="auto: as it is served here"
    )
    parser.add_argument("--seed", type=at_least(0), default=7)
    parser.add_argument("--work", type=Path, help="folder of unfinished work (default: OUT with `.work`)")


def run(args: argparse.Namespace) -> None:
    """Write the prompts."""
    work = args.work or args.out.with_suffix(".work")
    reported = Reported(reported_texts())
    tasks = {words_of(text) for text in reported_tasks()}
    made: dict[str, Iterable[Prompt]] = {
        "code": (prompt for prompt in _code(args.code, args.seed) if not reported.overlaps(prompt.text)),
        "reasoning": reasoning.tasks(args.reasoning, args.seed, tasks),
        "general": (prompt for prompt in _general(args, work) if not reported.overlaps(prompt.text)),
    }
    wanted = {"code": args.code, "reasoning": args.reasoning, "general": args.general}
    prompts = {kind: list(islice(made[kind], wanted[kind])) for kind in made}
    write_prompts(args.out, (prompt for members in prompts.values() for prompt in members))
    for kind, members in prompts.items():
        print(f"{kind}: {len(members)} of {wanted[kind]} prompts")
    if len(prompts["general"]) < wanted["general"]:
        print("general: the large model's lists have too few numbered lines; add questions of your own to the file")


def _code(count: int, seed: int) -> list[Prompt]:
    found = [function for package in functions.permissive_packages() for function in functions.functions_of(package)]
    return functions.tasks(found, _with_spare(count), seed)


def _general(args: argparse.Namespace, work: Path) -> list[Prompt]:
    if args.general == 0:
        return []
    from training.answers.answer import read_answers
    from training.answers.resumable import Asking, answer_all
    from training.answers.writing import Writer

    count = _with_spare(args.general)
    requests = questions.requests(-(-count // questions.QUESTIONS_EACH), args.seed)
    if len(requests) * questions.QUESTIONS_EACH < args.general:
        most = len(requests) * questions.QUESTIONS_EACH
        raise ConfigError(f"--general: {args.general}; {questions.TOPICS.name} has topics for up to {most}")
    writer = Writer.of_pair(args.pair, args.dtype, top=1)
    asked = [Prompt(f"request/{number}", "general", text) for number, text in enumerate(requests)]
    answer_all(writer, asked, Asking((_ASKED,), _LONGEST_LIST, 24, args.seed), work, say=print)
    return questions.questions([writer.text_of(answer) for answer in read_answers(work)], count)


def _with_spare(count: int) -> int:
    return math.ceil(count * _SPARE)
