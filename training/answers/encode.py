"""Add hidden states of prompts to answers: `python -m training encode --pair NAME --answers A --layers L,L --out B`.

A projector learns from them. `answers --layers` keeps them at once; this command makes them for answers that have none.
Each part becomes a file, and the same command goes on where an interrupted one ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.answers.answer import Answer, data_digest, read_answers, refuse_others, write_answers
from training.options import layers

if TYPE_CHECKING:
    from training.answers.writing import Writer

_TEXTS = 50  # of a file
_DIGEST = 12  # hexadecimal digits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pair", default="default")
    parser.add_argument("--answers", type=Path, required=True, help="a folder or a file of answers")
    parser.add_argument("--layers", type=layers, required=True, metavar="L,L", help="the states after these layers")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the answers with hidden states")
    parser.add_argument(
        "--dtype", choices=("auto", "int8", "bfloat16", "float32"), default="auto", help="auto: as it is served here"
    )


def run(args: argparse.Namespace) -> None:
    """Write the files that are missing."""
    from training.answers.writing import Writer

    answers = read_answers(args.answers)
    writer = Writer.of_pair(args.pair, args.dtype, top=1, layers=args.layers)
    encode_all(writer, answers, args.out, say=lambda line: print(line, flush=True))


def encode_all(writer: Writer, answers: Sequence[Answer], folder: Path, *, say: Callable[[str], None]) -> None:
    """Write the files that are missing in `folder`. Raises ConfigError if it has files of other answers or settings."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(writer.settings, sort_keys=True).encode()
    parts = [answers[first : first + _TEXTS] for first in range(0, len(answers), _TEXTS)]
    names = [
        f"{number:04}-{hashlib.sha256(data_digest(part).encode() + settings).hexdigest()[:_DIGEST]}.npz"
        for number, part in enumerate(parts)
    ]
    refuse_others(folder, names)
    for name, part in zip(names, parts, strict=True):
        if (folder / name).exists():
            continue
        began_s = time.monotonic()
        write_answers(folder / name, [writer.encoded(answer) for answer in part])
        say(f"{name}: {len(part)} of {len(answers)} answers in {time.monotonic() - began_s:.0f} s")
