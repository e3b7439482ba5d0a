"""Timing of a cloud model's forwards for `benchmarks/fleet/cloud_profile.py`.

The model is plain transformers, as in the cloud service. On a fast accelerator, kernel launches dominate the smaller
shapes, and the profile shows it by flat rows.
"""

from __future__ import annotations

import gc
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from benchmarks.cloud_profile.types import MIN_REPEATS, Plan, Row, Shape

HEADROOM = 0.85  # share of free memory to use; the estimate is not exact
PREFILL_CHUNK = 512


class Accelerator:
    """The place of the forwards: the first of cuda, xpu and mps that torch finds, else the processor."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or next((kind for kind in ("cuda", "xpu", "mps") if _present(kind)), "cpu")
        self._module: Any = None if self.name == "cpu" else getattr(torch, self.name)

    def describe(self) -> str:
        """Return the device's own name, if it has one."""
        return str(self._module.get_device_name()) if self.name in ("cuda", "xpu") else self.name

    @property
    def threads(self) -> int:
        """Threads of the processor that torch uses; on an accelerator they only launch its work."""
        return torch.get_num_threads()

    def synchronise(self) -> None:
        """Wait until all requested work is done."""
        if self._module is not None:
            self._module.synchronize()

    def free_bytes(self) -> int:
        """Return the free memory."""
        if self.name in ("cuda", "xpu"):
            return int(self._module.mem_get_info()[0])
        return int(psutil.virtual_memory().available)

    def release(self) -> None:
        """Free the memory that torch keeps for later."""
        gc.collect()
        if self._module is not None:
            self._module.empty_cache()


def _present(kind: str) -> bool:
    backend: Any = torch.backends.mps if kind == "mps" else getattr(torch, kind)
    return bool(backend.is_available())


def measure(
    plan: Plan,
    accelerator: Accelerator,
    rows: Sequence[Row],
    now: Callable[[], float],
    keep: Callable[[list[Row], list[dict[str, Any]]], None],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Add to `rows` the plan's other rows; call `keep` with rows and skipped steps after each. `now` is in seconds."""
    rows, skipped = list(rows), list[dict[str, Any]]()
    done = {(row.shape, row.dtype, row.batch, row.context, row.tokens) for row in rows}
    ends = now() + plan.budget_s

    def skip(shape: str, why: str, **rest: int) -> None:
        skipped.append({"shape": shape, **rest, "why": why})
        keep(rows, skipped)

    for name, shape in plan.shapes.items():
        wanted = itertools.product(plan.batches, plan.contexts)
        groups = [
            (batch, context, missing)
            for batch, context in sorted(wanted, key=lambda pair: (pair[0] * pair[1], pair))
            if (missing := [k for k in plan.tokens if (name, plan.dtype, batch, context, k) not in done])
        ]
        if not groups:
            continue
        if now() >= ends:
            skip(name, f"the budget of {plan.budget_s:g} s is spent")
            continue
        width = torch.finfo(getattr(torch, plan.dtype)).bits // 8
        if (lack := _lack(shape.parameters * width, accelerator)) is not None:
            skip(name, f"weights: {lack}")
            continue
        model = _model(shape, plan, accelerator)
        for batch, context, missing in groups:
            if now() >= ends:
                skip(name, f"the budget of {plan.budget_s:g} s is spent", batch=batch, context=context)
                continue
            if (lack := _lack(step_bytes(shape, batch, context, max(missing), width), accelerator)) is not None:
                skip(name, lack, batch=batch, context=context)
                continue
            try:
                for tokens, times in _timed(model, accelerator, batch, context, missing, plan.repeats, ends, now):
                    rows.append(_row(name, plan.dtype, batch, context, tokens, times))
                    keep(rows, skipped)
            except torch.OutOfMemoryError:
                skip(name, "out of memory", batch=batch, context=context)
            accelerator.release()
        del model
        accelerator.release()
    return rows, skipped


def step_bytes(shape: Shape, batch: int, context: int, tokens: int, width: int) -> int:
    """Return the memory of a step in addition to the weights, prefill included; `width` is bytes per number."""
    head_width = shape.hidden_size // shape.heads
    held = batch * (context + tokens)
    kv_of_layer = 2 * shape.kv_heads * head_width * held * width
    repeated = 2 * shape.heads * head_width * held * width  # keys and values for every head, in one layer
    rows = batch * max(tokens, min(context, PREFILL_CHUNK))
    activations = rows * (4 * shape.intermediate_size + 8 * shape.hidden_size) * width
    mask = rows * (context + tokens) * (width + 1)
    logits = batch * tokens * shape.vocabulary_size * width
    return (shape.layers + 2) * kv_of_layer + repeated + activations + mask + logits  # a layer grows by copying


def _lack(needed: int, accelerator: Accelerator) -> str | None:
    free = accelerator.free_bytes()
    if needed <= HEADROOM * free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, {HEADROOM:.0%} of {free / 2**30:.1f} GiB may be used"


def _config(shape: Shape, context_tokens: int) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary_size,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=context_tokens,
        rope_theta=1_000_000.0,
    )


def _model(shape: Shape, plan: Plan, accelerator: Accelerator) -> Any:
    """Create the model on the accelerator: large ones may not fit into the machine's memory as well."""
    context_tokens = max(plan.contexts) + max(plan.tokens)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, plan.dtype))
    try:
        with torch.device("meta"):
            model = Qwen2ForCausalLM(_config(shape, context_tokens))
        model = model.to_empty(device=accelerator.name)
        model.tie_weights()
        with torch.no_grad(), torch.device(accelerator.name):
            for parameter in model.parameters():
                parameter.uniform_(-0.03, 0.03)
            rotary = model.model.rotary_emb
            rotary.inv_freq = rotary.rope_init_fn(rotary.config, accelerator.name)[0].float()
    finally:
        torch.set_default_dtype(before)
    return model.eval()


@torch.inference_mode()
def _timed(
    model: Any,
    accelerator: Accelerator,
    batch: int,
    context: int,
    counts: Sequence[int],
    repeats: int,
    ends: float,
    now: Callable[[], float],
) -> Iterator[tuple[int, list[float]]]:
    """Yield the milliseconds of each repeat, for each count of tokens: a minimum, then as many as the budget allows."""
    cache = DynamicCache()
    for start in range(0, context, PREFILL_CHUNK):
        ids = _ids(model, batch, min(PREFILL_CHUNK, context - start))
        model.model(input_ids=ids, past_key_values=cache, use_cache=True)
    for tokens in counts:
        ids = _ids(model, batch, tokens)
        times: list[float] = []
        for _ in range(repeats + 2):  # the first two warm up
            accelerator.synchronise()
            started = now()
            model(input_ids=ids, past_key_values=cache, use_cache=True)
            accelerator.synchronise()
            times.append((now() - started) * 1e3)
            cache.crop(context)
            if len(times) >= MIN_REPEATS + 2 and now() >= ends:
                break
        yield tokens, times[2:]


def _ids(model: Any, batch: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * 100_003 + tokens)
    ids = torch.randint(model.config.vocab_size, (batch, tokens), generator=generator)
    return ids.to(model.device)


def _row(shape: str, dtype: str, batch: int, context: int, tokens: int, times: Sequence[float]) -> Row:
    p10, p90 = (float(value) for value in np.percentile(times, (10, 90)))
    median = statistics.median(times)
    return Row(shape, dtype, batch, context, tokens, round(median, 4), round(p10, 4), round(p90, 4), len(times))
