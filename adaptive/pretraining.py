"""Stage 1: a Duo network from random weights, with a random route for each token and layer."""

from __future__ import annotations

import io
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from adaptive.duo import DuoTransformer, Effort, random_routes
from chaperone_common.errors import ConfigError
from chaperone_common.files import replace_file


@dataclass(frozen=True, slots=True)
class Schedule:
    """The length and the speed of training."""

    steps: int
    texts: int = 32  # of a step
    learning_rate: float = 2e-3
    warmup: float = 0.03  # share of all steps
    weight_decay: float = 0.05
    keep_every: int = 200  # steps
    seed: int = 1


def pretrain(
    duo: DuoTransformer,
    texts: NDArray[np.int64],
    schedule: Schedule,
    checkpoint: Path,
    *,
    run: str = "",
    max_seconds: float = math.inf,
    say: Callable[[str], None] = print,
) -> bool:
    """Train on texts [texts, tokens], and return whether training is over. A checkpoint that is there is continued.

    Batches and routes depend on the seed and the step alone, so an interrupted run takes the same steps. `run` is a
    digest of data and settings. Raises ConfigError for a checkpoint of another run.
    """
    optimiser = torch.optim.AdamW(duo.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    first = _resumed(checkpoint, run, duo, optimiser)
    ends_s = time.monotonic() + max_seconds
    duo.train()
    mean = None
    for step in range(first, schedule.steps):
        if time.monotonic() > ends_s:
            _keep(checkpoint, run, step, duo, optimiser)
            say(f"step {step} of {schedule.steps}; the same command goes on")
            return False
        draws = np.random.default_rng([schedule.seed, step])
        batch = torch.from_numpy(texts[draws.choice(len(texts), schedule.texts)])
        routes = random_routes(
            (batch.shape[0], batch.shape[1]),
            duo.config.layers,
            torch.Generator().manual_seed(int(draws.integers(2**62))),
        )
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * _factor(step, schedule)
        with torch.autocast("cpu", torch.bfloat16):
            logits = duo(batch, routes)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        if not math.isfinite(value := loss.item()):
            raise ConfigError(f"step {step}: the loss is {value}; lower the learning rate, and name another checkpoint")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(duo.parameters(), 1.0)
        optimiser.step()
        mean = value if mean is None else 0.98 * mean + 0.02 * value
        if (step + 1) % schedule.keep_every == 0 or step + 1 == schedule.steps:
            _keep(checkpoint, run, step + 1, duo, optimiser)
            say(f"step {step + 1} of {schedule.steps}: loss {mean:.4f} with random routes")
    return True


@torch.inference_mode()
def loss_of(duo: DuoTransformer, texts: NDArray[np.int64], pattern: Sequence[Effort], batch: int = 16) -> float:
    """Return the mean loss in nats of texts [texts, tokens] whose tokens all take one pattern."""
    duo.eval()
    total = 0.0
    for start in range(0, len(texts), batch):
        token_ids = torch.from_numpy(texts[start : start + batch])
        logits = duo(token_ids, duo.fixed(tuple(pattern), token_ids))
        total += float(cross_entropy(logits[:, :-1].flatten(0, 1).float(), token_ids[:, 1:].flatten(), reduction="sum"))
    return total / float(texts.shape[0] * (texts.shape[1] - 1))


def _factor(step: int, schedule: Schedule) -> float:
    """Return the share of the learning rate: a linear rise, then half a cosine down to a twentieth."""
    rise = max(1, round(schedule.warmup * schedule.steps))
    if step < rise:
        return (step + 1) / rise
    place = (step - rise) / max(1, schedule.steps - rise)
    return 0.05 + 0.95 * (1 + math.cos(math.pi * place)) / 2


def _resumed(path: Path, run: str, duo: DuoTransformer, optimiser: torch.optim.Optimizer) -> int:
    """Take over a checkpoint, and return the next step."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        if state["run"] == run:
            duo.load_state_dict(state["duo"])
            optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: it is no whole checkpoint ({error}); delete it to begin again") from None
    if state["run"] != run:
        raise ConfigError(f"{path}: it belongs to a training with other texts or settings; name another, or delete it")
    return step


def _keep(path: Path, run: str, step: int, duo: DuoTransformer, optimiser: torch.optim.Optimizer) -> None:
    content = io.BytesIO()
    state = {"run": run, "step": step, "duo": duo.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save(state, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [content.getvalue()])
