"""Let the large model answer prompts: `python -m training answers --pair NAME --prompts P.jsonl --out FOLDER`.

Each batch becomes a file. The same command goes on where an interrupted one ended. Half of the batches are greedy, and
half are drawn at temperature 0.8 with top-p 0.95, since devices ask for both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.answers.sampling import DRAWN, GREEDY
from training.options import at_least, layers
from training.prompt import read_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pair", default="default")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines of id, kind and text")
    parser.add_argument("--out", type=Path, required=True, help="the folder of answers")
    parser.add_argument(
        "--dtype", choices=("auto", "int8", "bfloat16", "float32"), default="auto", help="auto: as it is served here"
    )
    parser.add_argument("--batch", type=at_least(1), default=24, help="texts at once (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=256, help="of an answer (default: %(default)s)")
    parser.add_argument("--top", type=at_least(1), default=16, help="likeliest tokens to keep (default: %(default)s)")
    parser.add_argument(
        "--layers", type=layers, default=(), metavar="L,L", help="keep the prompts' hidden states after these layers"
    )
    parser.add_argument("--seed", type=at_least(0), default=1)
    parser.add_argument(
        "--max-seconds", type=float, default=float("inf"), help="begin no further batch after this time"
    )


def run(args: argparse.Namespace) -> None:
    """Write the answers that are missing."""
    from training.answers.resumable import Asking, answer_all
    from training.answers.writing import Writer

    prompts = read_prompts(args.prompts)
    writer = Writer.of_pair(args.pair, args.dtype, top=args.top, layers=args.layers)
    asking = Asking((GREEDY, DRAWN), args.max_new_tokens, args.batch, args.seed)
    answer_all(writer, prompts, asking, args.out, max_seconds=args.max_seconds, say=_say)


def _say(line: str) -> None:
    print(line, flush=True)
