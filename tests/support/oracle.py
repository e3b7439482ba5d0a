"""What the cloud model writes alone, computed as plainly as possible.

Nothing of Chaperone is used here: a full forward without cache for every token, a Philox in Python integers, and the
rule of coupled choice in float64, as the protocol states it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

MASK = 2**64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al., SC 2011)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & MASK, (a >> 64) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def uniform(seed: int, position: int, token_id: int) -> float:
    raw = philox([1 + token_id // 4, position, 0, 0], [seed, 0])[token_id % 4]
    return ((raw >> 11) + 0.5) * 2.0**-53


def choice(
    logits: np.ndarray[Any, Any],
    position: int,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int,
) -> int:
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda v: (-p[v], v))
    if top_k:
        order = order[:top_k]
    mass, total, kept = 0.0, sum(p[v] for v in order), []
    for v in order:
        if mass >= top_p * total:
            break
        kept.append(v)
        mass += p[v]
    kept = [v for v in kept if p[v] >= min_p * p[order[0]]]
    return max(kept, key=lambda v: math.log(p[v]) - math.log(-math.log(uniform(seed, position, v))))


def load(folder: Path, dtype: torch.dtype = torch.float32, *, attention: str | None = None) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def write(
    model: Any,
    prompt: Sequence[int],
    *,
    vocabulary_size: int,
    max_new_tokens: int,
    eos_token_ids: Container[int],
    decode: Callable[[list[int]], str],
    stop: Sequence[str] = (),
    **sampling: Any,
) -> tuple[list[int], str, str]:
    """Token ids, text and finish reason."""
    ids: list[int] = []
    while len(ids) < max_new_tokens:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1, :vocabulary_size]
        ids.append(choice(logits.float().numpy(), len(prompt) + len(ids), **sampling))
        text = decode(ids)
        ends = [text.index(s) for s in stop if s in text]
        if ends:
            return ids, text[: min(ends)], "stop"
        if ids[-1] in eos_token_ids:
            return ids, text, "stop"
    return ids, decode(ids), "length"
