"""Join answers in one small file: `python -m training collect --answers FOLDER --out A.npz`.

Likeliest tokens below `--least` are left out, and so are hidden states, which are most of a folder: `encode` makes them
again. What is left takes about 15 bytes for each token of an answer.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.answers.answer import Answer, read_answers, write_answers
from training.options import check_output, share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--answers", type=Path, nargs="+", required=True, help="folders or files of answers")
    parser.add_argument("--out", type=Path, required=True, help="the file, with the ending .npz")
    parser.add_argument("--least", type=share, default=0.001, help="least probability (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the file."""
    check_output(args.out, ".npz")
    answers = read_answers(*args.answers)
    write_answers(args.out, [without_details(answer, args.least) for answer in answers])
    tokens = sum(len(answer.tokens) for answer in answers)
    print(f"{args.out}: {len(answers)} answers, {tokens} tokens, {args.out.stat().st_size / 2**20:.1f} MiB")


def without_details(answer: Answer, least: float) -> Answer:
    """Return an answer without hidden states, and without tokens that have a probability below `least`."""
    kept = answer.top_logprobs.astype(np.float32) >= np.log(least)
    return replace(
        answer,
        top_ids=np.where(kept, answer.top_ids, 0).astype(np.int32),
        top_logprobs=np.where(kept, answer.top_logprobs, -np.inf).astype(np.float16),
        encodings={},
    )
