"""Let the large model answer prompts: `python -m training answers --pair NAME --prompts P.jsonl --out FOLDER`.

Each batch becomes a file. The same command goes on where an interrupted one ended. Half of the batches are greedy, and
half are drawn at temperature 0.8 with top-p 0.95, since devices ask for both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.answers.sampling import DRAWN, GREEDY
from training.options import add_dtype, add_max_seconds, at_least, layers
from training.prompt import read_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pair", default="default", help="its large model answers (default: %(default)s)")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines of id, kind and text")
    parser.add_argument("--out", type=Path, required=True, help="the folder of answers")
    add_dtype(parser)
    parser.add_argument("--batch", type=at_least(1), default=24, help="texts at once (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=256, help="of an answer (default: %(default)s)")
    parser.add_argument("--top", type=at_least(1), default=16, help="likeliest tokens to keep (default: %(default)s)")
    parser.add_argument(
        "--layers", type=layers, default=(), metavar="L,L", help="keep the prompts' hidden states after these layers"
    )
    parser.add_argument("--seed", type=at_least(0), default=1, help="of the draws (default: %(default)s)")
    add_max_seconds(parser)


def run(args: argparse.Namespace) -> bool:
    """Write the answers that are missing; return whether all are there."""
    from training.answers.resumable import Asking, answer_all
    from training.answers.writing import Writer

    prompts = read_prompts(args.prompts)
    writer = Writer.of_pair(args.pair, args.dtype, top=args.top, layers=args.layers)
    asking = Asking((GREEDY, DRAWN), args.max_new_tokens, args.batch, args.seed)
    return answer_all(writer, prompts, asking, args.out, max_seconds=args.max_seconds, say=_say)


def _say(line: str) -> None:
    print(line, flush=True)
