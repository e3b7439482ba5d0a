"""Duo-LLM's study on a network of ours, from seeds: `python -m benchmarks adaptive [--quick] --out F.json`.

The network learns from the sources and the documentation of installed packages, with a random route for each token and
layer. Then the loss of every route is computed at places of held-out files, and routers are trained for each budget.
`--work` keeps tokens, network and losses, so that the same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.digests import digest_of
from benchmarks.kit.provenance import provenance
from chaperone_common.files import replace_file

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a study."""

    vocabulary: int = 4096
    layers: int = 8
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    big: int = 1024
    window: int = 256  # tokens of a text
    train_tokens: int = 40_000_000
    steps: int = 4000
    texts: int = 32  # of a step
    studied_texts: int = 24
    every: int = 4  # places of a studied text
    router_steps: int = 300
    budgets: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)

    @property
    def first(self) -> int:
        """The first place that is studied: those before have little context."""
        return self.window // 4


QUICK = Size(
    vocabulary=512,
    layers=4,
    width=64,
    big=256,
    window=64,
    train_tokens=400_000,
    steps=60,
    texts=16,
    studied_texts=4,
    router_steps=40,
    budgets=(0.0, 1.0, 2.0, 4.0),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a small network on few texts, in a minute: no result")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of stage 1; default: those of the study")
    parser.add_argument(
        "--max-seconds", type=float, default=math.inf, help="stop stage 1 after this time, to go on later"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".cache" / "benchmarks" / "adaptive", help="the folder of unfinished runs"
    )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train what is missing, and study it. Return None if time ended before stage 1 did."""
    measured = provenance()
    size = QUICK if args.quick else Size()
    size = size if args.steps is None else replace(size, steps=args.steps)
    say = partial(print, flush=True)
    folder = args.work / digest_of({"size": asdict(size), "seed": args.seed})
    began_s = time.monotonic()
    learned, held_out = _tokens(folder, size, say)

    from adaptive.corpus import windows
    from adaptive.duo import DuoConfig, DuoTransformer
    from adaptive.pretraining import Schedule, pretrain
    from adaptive.routers import train_routers
    from adaptive.study import by_budget, difficulty, findings, losses_of, router_routes

    config = DuoConfig(size.vocabulary, size.layers, size.width, size.heads, size.kv_heads, size.big, size.window)
    duo = DuoTransformer(config, seed=args.seed)
    texts = windows(learned, size.window)
    schedule = Schedule(size.steps, size.texts, seed=args.seed)
    data = digest_of({"tokens": [len(learned), int(learned[:1_000_000].astype(np.int64).sum())]})
    name = json.dumps([asdict(config), asdict(schedule), data])
    if not pretrain(duo, texts, schedule, folder / "duo.checkpoint", run=name, max_seconds=args.max_seconds, say=say):
        return None
    own = windows(held_out, size.window)
    studied = own[np.random.default_rng(args.seed).permutation(len(own))[: size.studied_texts]]
    losses = _losses(folder, partial(losses_of, duo, studied, size.every, size.first), say)
    routed = {}
    for budget in size.budgets:
        if 0 < budget < size.layers:
            routers = train_routers(duo, _tensor(texts), budget, steps=size.router_steps, seed=args.seed)
            routed[budget] = router_routes(routers, studied, size.every, size.first)
            say(f"routers for {budget:g} big FFNs are trained")
    rows = by_budget(losses, size.layers, size.budgets, routed, args.seed)
    hard = difficulty(losses, size.layers, budget=1.0)
    summary = {
        "losses": _losses_of_patterns(duo, studied),
        "by_budget": rows,
        "difficulty": hard,
        "findings": findings(rows, hard, size.layers),
    }
    settings = {
        "quick": args.quick,
        "seed": args.seed,
        "size": asdict(size),
        "train_tokens": len(learned),
        "held_out_tokens": len(held_out),
        "places": len(losses),
        "parameters": sum(parameter.numel() for parameter in duo.parameters()),
        "seconds": round(time.monotonic() - began_s),
    }
    return {"benchmark": "adaptive", **measured, "settings": settings, "summary": summary}


def _tokens(folder: Path, size: Size, say: Any) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return the tokens to learn from and those that are held out; made once, with their tokenizer."""
    kept = folder / "tokens.npz"
    if not kept.exists():
        from adaptive.corpus import documents, tokens_of, train_tokenizer

        say("reading the files of installed packages")
        found = [*documents()]
        tokenizer = train_tokenizer((each.text for each in found[::7] if not each.held_out), size.vocabulary)
        learned, held_out = tokens_of(iter(found), tokenizer, size.train_tokens)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "tokenizer.json", [tokenizer.to_str().encode()])
        unfinished = folder / "tokens.part.npz"
        np.savez(unfinished, learned=learned, held_out=held_out)
        unfinished.replace(kept)
        say(f"{len(learned)} tokens to learn from, {len(held_out)} held out")
    with kept.open("rb") as opened, np.load(opened) as file:
        return file["learned"], file["held_out"]


def _losses(folder: Path, make: Any, say: Any) -> NDArray[np.float32]:
    """Return the losses of all routes; made once."""
    kept = folder / "losses.npz"
    if not kept.exists():
        say("computing the loss of every route")
        unfinished = folder / "losses.part.npz"
        np.savez(unfinished, losses=make())
        unfinished.replace(kept)
    with kept.open("rb") as opened, np.load(opened) as file:
        found: NDArray[np.float32] = file["losses"]
        return found


def _losses_of_patterns(duo: Any, texts: NDArray[np.int64]) -> dict[str, float]:
    """Return the loss of whole texts by one pattern, whose tokens all take it."""
    from adaptive.duo import Effort
    from adaptive.pretraining import loss_of

    layers = duo.config.layers
    return {
        f"all {effort.name.lower()}": round(loss_of(duo, texts, (effort,) * layers), 4)
        for effort in (Effort.BIG, Effort.SMALL, Effort.SKIP)
    }


def _tensor(texts: NDArray[np.int64]) -> Any:
    import torch

    return torch.from_numpy(texts)
