"""Make prompts: `python -m training prompts --pair NAME --out P.jsonl`.

Code is taken from functions of installed packages with permissive licences. Reasoning is from reasoning-gym. General
questions are made up by the pair's large model; `--work` keeps what it wrote, so that an interrupted run goes on. Near
copies of the texts that results are reported on, or that gates are calibrated with, are left out. Prompts of your own
users, in files named by `--own`, are taken as they are.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from chaperone_common.artefacts.registry import load_registry
from chaperone_common.errors import ConfigError
from training.answers.sampling import Sampling
from training.options import add_dtype, add_max_seconds, at_least, check_output
from training.prompt import Prompt, read_prompts, refuse_twice, write_prompts
from training.prompts import functions, questions, reasoning
from training.prompts.overlap import Reported, words_of
from training.prompts.reported import reported_tasks, reported_texts

_SPARE = 1.3  # prompts that are made for each one that is wanted, since some are copies
_ASKED = Sampling(temperature=1.0, top_p=0.95)
_LONGEST_LIST = 320  # tokens of a list of questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pair", default="default", help="its large model makes up the general questions")
    parser.add_argument("--out", type=Path, required=True, help="the file of prompts, with the ending .jsonl")
    parser.add_argument("--code", type=at_least(0), default=600, help="prompts of code (default: %(default)s)")
    parser.add_argument("--general", type=at_least(0), default=1000, help="general questions (default: %(default)s)")
    parser.add_argument("--reasoning", type=at_least(0), default=300, help="tasks of reasoning (default: %(default)s)")
    parser.add_argument(
        "--own", type=Path, nargs="+", default=[], metavar="FILE", help="JSON lines of id, kind and text to add"
    )
    add_dtype(parser)
    parser.add_argument("--seed", type=at_least(0), default=7, help="of all choices (default: %(default)s)")
    add_max_seconds(parser)
    parser.add_argument("--work", type=Path, help="folder of unfinished work (default: OUT with `.work`)")


def run(args: argparse.Namespace) -> bool:
    """Write the prompts; return False if time ended before all questions were there."""
    check_output(args.out, ".jsonl")
    load_registry().pair(args.pair)
    own = [prompt for path in args.own for prompt in read_prompts(path)]
    work = args.work or args.out.with_suffix(".work")
    asked = _asked(args, work)
    if asked is None:
        return False
    reported = Reported(reported_texts())
    tasks = {words_of(text) for text in reported_tasks()}
    made: dict[str, Iterable[Prompt]] = {
        "code": (prompt for prompt in _code(args.code, args.seed) if not reported.overlaps(prompt.text)),
        "reasoning": reasoning.tasks(args.reasoning, args.seed, tasks),
        "general": (prompt for prompt in asked if not reported.overlaps(prompt.text)),
    }
    wanted = {"code": args.code, "reasoning": args.reasoning, "general": args.general}
    prompts = {kind: list(islice(made[kind], wanted[kind])) for kind in made}
    everything = [prompt for members in (*prompts.values(), own) for prompt in members]
    refuse_twice(everything, args.out)
    write_prompts(args.out, everything)
    for kind, members in prompts.items():
        print(f"{kind}: {len(members)} of {wanted[kind]} prompts")
    if len(prompts["general"]) < wanted["general"]:
        print("general: the large model's lists have too few numbered lines; add questions with --own")
    return True


def _code(count: int, seed: int) -> list[Prompt]:
    found = [function for package in functions.permissive_packages() for function in functions.functions_of(package)]
    return functions.tasks(found, _with_spare(count), seed)


def _asked(args: argparse.Namespace, work: Path) -> list[Prompt] | None:
    """Return general questions, or None if time ended before all were there."""
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
    asking = Asking((_ASKED,), _LONGEST_LIST, 24, args.seed)
    if not answer_all(
        writer, asked, asking, work, max_seconds=args.max_seconds, say=functools.partial(print, flush=True)
    ):
        return None
    return questions.questions([writer.text_of(answer) for answer in read_answers(work)], count)


def _with_spare(count: int) -> int:
    return math.ceil(count * _SPARE)
