"""Train the drafter on answers: `python -m training distil --pair NAME --answers A --out NAME.safetensors`.

The same command goes on where an interrupted one ended; its checkpoint lies next to OUT. A part of the prompts is held
out. Training ends early when the divergence on them no longer falls, and the best state is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaperone_common.artefacts.manifest import file_sha256
from chaperone_common.errors import ConfigError
from training.answers.answer import Answer, Author
from training.options import add_max_seconds, at_least, check_output, layers, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    shown = " (default: %(default)s)"
    parser.add_argument("--pair", default="default", help="whose small model learns" + shown)
    parser.add_argument("--answers", type=Path, nargs="+", required=True, help="folders or files of answers")
    parser.add_argument("--out", type=Path, required=True, help="the adapter, with the ending .safetensors")
    parser.add_argument(
        "--begin-with",
        type=Path,
        metavar="FILE",
        help="an adapter to go on from, instead of from the model's own weights; with --rank 0 its low-rank changes "
        "stay as they are",
    )
    parser.add_argument(
        "--rank", type=at_least(0), default=8, help="of the adapter; 0: train the projector alone" + shown
    )
    parser.add_argument("--layers", type=layers, default=(), metavar="L,L", help="train a projector of these layers")
    parser.add_argument("--hidden", type=at_least(1), default=512, help="width of the projector's middle" + shown)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the frozen weights" + shown
    )
    parser.add_argument("--learning-rate", type=positive, default=4e-4, help="the highest" + shown)
    parser.add_argument("--epochs", type=at_least(1), default=2, help="readings of all answers" + shown)
    parser.add_argument("--batch-tokens", type=at_least(1), default=1536, help="of a step, with padding" + shown)
    parser.add_argument("--evaluate-every", type=at_least(1), default=40, metavar="STEPS", help=shown.strip())
    parser.add_argument(
        "--patience",
        type=at_least(1),
        default=4,
        metavar="EVALUATIONS",
        help="training ends after this many without a better one" + shown,
    )
    parser.add_argument("--first", type=at_least(1), metavar="N", help="only the first N answers")
    parser.add_argument("--held-out", type=at_least(1), default=96, help="texts of an evaluation, at most" + shown)
    parser.add_argument("--seed", type=at_least(0), default=1, help="of order and first weights" + shown)
    add_max_seconds(parser)


def run(args: argparse.Namespace) -> bool:
    """Train, and write one file with the low-rank changes, the projector, or both; return whether training is over."""
    check_output(args.out, ".safetensors")
    import torch

    from cloud_supervisor.export.adapter import Adapter
    from training.answers.answer import data_digest, read_answers, spread, whole_digest
    from training.distillation.drafter import Drafter, Shape, encoding_width
    from training.distillation.examples import is_held_out
    from training.distillation.train import Schedule, train
    from training.pair import models_of

    if not args.rank and not args.layers:
        raise ConfigError("--rank: 0 without --layers leaves nothing to train; give a rank, or the projector's layers")
    torch.manual_seed(args.seed)
    answers = read_answers(*args.answers)[: args.first]
    check_encodings(answers, args.layers)
    begin_with = None if args.begin_with is None else Adapter.load(args.begin_with)
    learned_from = [answer for answer in answers if not is_held_out(answer.id)]
    held_out = spread([answer for answer in answers if is_held_out(answer.id)], args.held_out)
    print(f"{len(learned_from)} answers to learn from, {len(held_out)} held out", flush=True)
    if not learned_from or not held_out:
        raise ConfigError(
            f"--answers: {len(answers)} are too few; about one in 12 is held out, and some must be left to learn from"
        )
    shape = Shape(args.rank, args.layers, args.hidden)
    schedule = Schedule(
        learning_rate=args.learning_rate,
        epochs=args.epochs,
        batch_tokens=args.batch_tokens,
        evaluate_every=args.evaluate_every,
        patience=args.patience,
        seed=args.seed,
    )
    with models_of(args.pair) as (edge, cloud):
        name = edge.name
        check_author(answers[0].author, cloud.name, edge.vocabulary.digest)
        width = encoding_width([answers[0].encodings], args.layers) if args.layers else 0
        drafter = Drafter(edge.load(args.dtype).model, shape, width)
    if begin_with is not None:
        drafter.begin_with(begin_with, name)
    progress, over = train(
        drafter,
        learned_from,
        held_out,
        args.layers,
        schedule,
        args.out.with_suffix(".checkpoint"),
        run=json.dumps(
            [
                drafter.base_digest,
                args.dtype,
                whole_digest(answers, args.layers),
                len(held_out),
                asdict(shape),
                asdict(schedule),
                None if begin_with is None else file_sha256(args.begin_with),
            ]
        ),
        max_seconds=args.max_seconds,
        say=lambda line: print(line, flush=True),
    )
    if not over:
        return False
    best = progress.evaluations[_best(progress.evaluations)]
    if best["step"] == 0:
        raise ConfigError(
            "--learning-rate: no state was better on the held-out prompts than the first, so nothing is written; give "
            "another rate and another --out, or more answers"
        )
    drafter.load(progress.best)
    provenance = {
        "pair": args.pair,
        "answers": len(learned_from),
        "tokens": sum(len(answer.tokens) for answer in learned_from),
        "data": data_digest(learned_from),
        "shape": asdict(shape),
        "schedule": asdict(schedule),
        "begun_with": {} if begin_with is None else dict(begin_with.provenance),
        "held_out": {"before": progress.evaluations[0], "after": best},
    }
    drafter.adapter(name, provenance).save(args.out)
    print(f"{args.out}: written, the state after step {best['step']}")
    return True


def check_author(author: Author, model: str, tokenizer: str) -> None:
    """Raise ConfigError for answers of another large model than the pair's, or of another tokenizer."""
    if author != Author(model, tokenizer):
        raise ConfigError(
            f"--answers: {author.model} wrote them, with the tokenizer {author.tokenizer}; the pair has {model} and "
            f"{tokenizer}; name the pair that they were written for, or write answers for this one"
        )


def check_encodings(answers: Sequence[Answer], layers: Sequence[int]) -> None:
    """Raise ConfigError for answers without the hidden states that a projector needs."""
    for layer in layers:
        if any(layer not in answer.encodings for answer in answers):
            names = ", ".join(map(str, sorted(answers[0].encodings))) or "none"
            raise ConfigError(
                f"--layers: {layer}; the answers have hidden states after these layers: {names}; make others with "
                "`python -m training encode`"
            )


def _best(evaluations: list[dict[str, Any]]) -> int:
    values = [float(row["all"]["divergence"]) for row in evaluations]
    return values.index(min(values))
