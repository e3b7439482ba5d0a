"""The loop of training: batches in random order, a checkpoint now and then, and the best state on held-out prompts."""

from __future__ import annotations

import io
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chaperone_common.errors import ConfigError
from chaperone_common.files import replace_file
from training.answers.answer import Answer
from training.distillation.drafter import Drafter
from training.distillation.examples import batch_of, steps_of
from training.distillation.objective import Likeness, divergence


@dataclass(frozen=True, slots=True)
class Schedule:
    """The length and the speed of training."""

    learning_rate: float = 2e-4
    warmup: float = 0.05  # share of all steps
    epochs: int = 2
    batch_tokens: int = 1536  # with padding
    evaluate_every: int = 40  # steps
    patience: int = 4  # evaluations without a better one, after which training ends
    seed: int = 1


@dataclass(slots=True)
class Progress:
    """The state of a training: all that a resumed run needs."""

    run: str = ""  # a digest of data and settings
    step: int = 0
    learned: dict[str, torch.Tensor] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_divergence(self) -> float:
        """The least divergence on held-out prompts so far."""
        return min((float(row["all"]["divergence"]) for row in self.evaluations), default=math.inf)

    @property
    def since_best(self) -> int:
        """Evaluations since the best one."""
        values = [float(row["all"]["divergence"]) for row in self.evaluations]
        return len(values) - 1 - values.index(min(values)) if values else 0


def train(
    drafter: Drafter,
    answers: Sequence[Answer],
    held_out: Sequence[Answer],
    layers: Sequence[int],
    schedule: Schedule,
    checkpoint: Path,
    *,
    run: str = "",
    max_seconds: float = math.inf,
    say: Callable[[str], None],
) -> tuple[Progress, bool]:
    """Train, and return the progress and whether training is over. A checkpoint that is there is continued.

    Every evaluation writes a checkpoint. `run` is a digest of data and settings. The order of the batches depends on
    the seed alone, so an interrupted run takes the same steps as one without an interruption. Raises ConfigError for a
    checkpoint of another run, and for a loss that is no finite number.
    """
    progress = _resumed(checkpoint, run)
    optimiser = torch.optim.AdamW(drafter.parameters(), lr=schedule.learning_rate, weight_decay=0.0)
    if progress.learned:
        drafter.load(progress.learned)
        optimiser.load_state_dict(progress.optimiser)
    steps = _all_steps(answers, schedule)
    ends_s = time.monotonic() + max_seconds
    if not progress.evaluations:
        _evaluate(drafter, held_out, layers, progress, say)
    for step in range(progress.step, len(steps)):
        if progress.since_best >= schedule.patience:
            return progress, True
        if time.monotonic() > ends_s:
            _keep(checkpoint, progress, step, drafter, optimiser)
            say(f"step {step} of {len(steps)}; the same command goes on")
            return progress, False
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * _factor(step, len(steps), schedule.warmup)
        batch = batch_of(steps[step], layers)
        loss = divergence(drafter.logits(batch), batch.top_ids, batch.top_logprobs).mean()
        if not math.isfinite(value := loss.item()):
            raise ConfigError(
                f"step {step}: the loss is {value}; give a lower --learning-rate, or --dtype float32, and another --out"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(drafter.parameters()), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % schedule.evaluate_every == 0 or step + 1 == len(steps):
            progress.step = step + 1
            _evaluate(drafter, held_out, layers, progress, say)
            _keep(checkpoint, progress, step + 1, drafter, optimiser)
    return progress, True


def likeness(drafter: Drafter, answers: Sequence[Answer], layers: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return how like the large model the drafter is, by kind of prompt, and on all."""
    found: dict[str, Likeness] = {"all": Likeness()}
    with torch.inference_mode():
        for answer in answers:
            batch = batch_of([answer], layers)
            logits = drafter.logits(batch)
            for kind in ("all", answer.kind):
                found.setdefault(kind, Likeness()).add(logits, batch.top_ids, batch.top_logprobs)
    return {kind: found[kind].as_json() for kind in sorted(found)}


def _evaluate(
    drafter: Drafter, held_out: Sequence[Answer], layers: Sequence[int], progress: Progress, say: Callable[[str], None]
) -> None:
    found = likeness(drafter, held_out, layers)
    better = float(found["all"]["divergence"]) < progress.best_divergence
    progress.evaluations.append({"step": progress.step, **found})
    if better:
        progress.best = drafter.learned()
    said = "; ".join(
        f"{kind}: divergence {row['divergence']:.4f}, agreement {row['agreement']:.4f}" for kind, row in found.items()
    )
    say(f"step {progress.step}, on held-out prompts: {said}")


def _all_steps(answers: Sequence[Answer], schedule: Schedule) -> list[list[Answer]]:
    draws = np.random.default_rng(schedule.seed)
    return [step for _ in range(schedule.epochs) for step in steps_of(answers, schedule.batch_tokens, draws)]


def _factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the learning rate: a linear rise, then half a cosine down to a tenth."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    place = (step - rise) / max(1, steps - rise)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * place)) / 2


def _resumed(path: Path, run: str) -> Progress:
    if not path.exists():
        return Progress(run)
    try:
        progress = Progress(**torch.load(path, weights_only=True))
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: it is no whole checkpoint ({error}); delete it to begin again") from None
    if progress.run != run:
        raise ConfigError(
            f"{path}: it belongs to a training with other answers or settings; name another --out, or delete it"
        )
    return progress


def _keep(path: Path, progress: Progress, step: int, drafter: Drafter, optimiser: torch.optim.Optimizer) -> None:
    """Write a checkpoint after `step` steps; it is there as a whole or not at all."""
    progress.step, progress.learned, progress.optimiser = step, drafter.learned(), optimiser.state_dict()
    state = {
        "run": progress.run,
        "step": progress.step,
        "learned": progress.learned,
        "optimiser": progress.optimiser,
        "best": progress.best,
        "evaluations": progress.evaluations,
    }
    content = io.BytesIO()
    torch.save(state, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [content.getvalue()])
