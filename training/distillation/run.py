"""Train the drafter on answers: `python -m training distil --pair NAME --answers FOLDER --out NAME.safetensors`.

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

from chaperone_common.errors import ConfigError
from training.answers.answer import Answer
from training.options import at_least, layers, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pair", default="default")
    parser.add_argument("--answers", type=Path, required=True, help="the folder of `answers`")
    parser.add_argument("--out", type=Path, required=True, help="the adapter, a safetensors file")
    parser.add_argument("--rank", type=at_least(0), default=8, help="of the adapter; 0: train the projector alone")
    parser.add_argument("--layers", type=layers, default=(), metavar="L,L", help="train a projector of these layers")
    parser.add_argument("--hidden", type=at_least(1), default=512, help="width of the projector's middle")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the frozen weights")
    parser.add_argument("--learning-rate", type=positive, default=2e-4)
    parser.add_argument("--epochs", type=at_least(1), default=2)
    parser.add_argument("--batch-tokens", type=at_least(1), default=1536)
    parser.add_argument("--evaluate-every", type=at_least(1), default=40, metavar="STEPS")
    parser.add_argument("--patience", type=at_least(1), default=4, metavar="EVALUATIONS")
    parser.add_argument("--first", type=at_least(1), help="only the first N answers")
    parser.add_argument("--held-out", type=at_least(1), default=96, help="texts of an evaluation, at most")
    parser.add_argument("--seed", type=at_least(0), default=1)
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="stop after this time, to go on later")


def run(args: argparse.Namespace) -> None:
    """Train, and write one file with the low-rank changes, the projector, or both."""
    import torch

    from training.answers.answer import data_digest, read_answers
    from training.distillation.drafter import Drafter, Shape, encoding_width
    from training.distillation.examples import is_held_out
    from training.distillation.train import Schedule, train
    from training.pair import models_of

    if not args.rank and not args.layers:
        raise ConfigError("--rank: 0 without --layers leaves nothing to train; give a rank, or the projector's layers")
    torch.manual_seed(args.seed)
    answers = read_answers(args.answers)[: args.first]
    check_encodings(answers, args.layers, args.answers)
    learned_from = [answer for answer in answers if not is_held_out(answer.id)]
    held_out = [answer for answer in answers if is_held_out(answer.id)][: args.held_out]
    print(f"{len(learned_from)} answers to learn from, {len(held_out)} held out", flush=True)
    if not learned_from or not held_out:
        raise ConfigError(
            f"{args.answers}: {len(answers)} answers are too few; about one in 12 is held out, and some must be left "
            "to learn from"
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
    with models_of(args.pair) as (edge, _):
        name = edge.name
        width = encoding_width([answers[0].encodings], args.layers) if args.layers else 0
        drafter = Drafter(edge.load(args.dtype).model, shape, width)
    progress, over = train(
        drafter,
        learned_from,
        held_out,
        args.layers,
        schedule,
        args.out.with_suffix(".checkpoint"),
        run=json.dumps([args.pair, args.dtype, data_digest(answers), asdict(shape), asdict(schedule)]),
        max_seconds=args.max_seconds,
        say=lambda line: print(line, flush=True),
    )
    if not over:
        return
    drafter.load(progress.best)
    provenance = {
        "pair": args.pair,
        "answers": len(learned_from),
        "tokens": sum(len(answer.tokens) for answer in learned_from),
        "data": data_digest(learned_from),
        "shape": asdict(shape),
        "schedule": asdict(schedule),
        "held_out": {"before": progress.evaluations[0], "after": progress.evaluations[_best(progress.evaluations)]},
    }
    drafter.adapter(name, provenance).save(args.out)
    print(f"{args.out}: written")


def check_encodings(answers: Sequence[Answer], layers: Sequence[int], source: Path) -> None:
    """Raise ConfigError for answers without the hidden states that a projector needs."""
    for layer in layers:
        if any(layer not in answer.encodings for answer in answers):
            names = ", ".join(map(str, sorted(answers[0].encodings))) or "none"
            raise ConfigError(
                f"--layers: {layer}; {source} has hidden states after these layers: {names}; make others with "
                "`python -m training encode`"
            )


def _best(evaluations: list[dict[str, Any]]) -> int:
    values = [float(row["all"]["divergence"]) for row in evaluations]
    return values.index(min(values))
