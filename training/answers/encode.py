"""Add hidden states of prompts to answers: `python -m training encode --pair NAME --answers A --layers L,L --out B`.

A projector learns from them. `answers --layers` keeps them at once; this command makes them for answers that have none.
Each part becomes a file, and the same command goes on where an interrupted one ended.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chaperone_common.errors import ConfigError
from training.answers.answer import Answer, data_digest, read_answers, refuse_others, spread, write_answers
from training.options import add_dtype, add_max_seconds, at_least, layers

if TYPE_CHECKING:
    from training.answers.writing import Writer

_TEXTS = 50  # of a file
_DIGEST = 12  # hexadecimal digits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pair", default="default", help="whose large model reads (default: %(default)s)")
    parser.add_argument("--answers", type=Path, nargs="+", required=True, help="folders or files of answers")
    parser.add_argument("--layers", type=layers, required=True, metavar="L,L", help="the states after these layers")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the answers with hidden states")
    parser.add_argument("--texts", type=at_least(1), metavar="N", help="encode only N answers, a fair share of all")
    add_dtype(parser)
    add_max_seconds(parser)


def run(args: argparse.Namespace) -> bool:
    """Write the files that are missing; return whether all are there."""
    from training.answers.writing import Writer

    answers = read_answers(*args.answers)
    answers = answers if args.texts is None else spread(answers, args.texts)
    writer = Writer.of_pair(args.pair, args.dtype, top=1, layers=args.layers)
    say = functools.partial(print, flush=True)
    return encode_all(writer, answers, args.out, max_seconds=args.max_seconds, say=say)


def encode_all(
    writer: Writer,
    answers: Sequence[Answer],
    folder: Path,
    *,
    max_seconds: float = math.inf,
    say: Callable[[str], None],
) -> bool:
    """Write the files that are missing in `folder`; return whether all are there.

    No further file is begun after `max_seconds`. Raises ConfigError if the folder has files of other answers or
    settings, and for answers of another large model than the writer's.
    """
    if answers[0].author != writer.author:
        raise ConfigError(
            f"--pair: its large model is {writer.author.model}, the answers are {answers[0].author.model}'s, or of "
            "another tokenizer; name their pair"
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(writer.settings, sort_keys=True).encode()
    parts = [answers[first : first + _TEXTS] for first in range(0, len(answers), _TEXTS)]
    names = [
        f"{number:04}-{hashlib.sha256(data_digest(part).encode() + settings).hexdigest()[:_DIGEST]}.npz"
        for number, part in enumerate(parts)
    ]
    refuse_others(folder, names)
    missing = [(name, part) for name, part in zip(names, parts, strict=True) if not (folder / name).exists()]
    ends_s = time.monotonic() + max_seconds
    for done, (name, part) in enumerate(missing):
        began_s = time.monotonic()
        if began_s > ends_s:
            say(f"{len(missing) - done} of {len(names)} files are left; the same command goes on")
            return False
        write_answers(folder / name, [writer.encoded(answer) for answer in part])
        say(f"{name}: {len(part)} of {len(answers)} answers in {time.monotonic() - began_s:.0f} s")
    return True
